"""Attention of one query a head: what decode needs, where keys are many and queries few.

The unit that ranks and chunks of keys exchange is a packed part, [B, Hq, D + 1] in fp32 (fp64 for fp64 inputs): the
output over some of the keys in the first D columns, its log-sum-exp, in natural log, in the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heteroring.kernels.block import Block, resolve
from heteroring.kernels.merge import merge_


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, block: str | Block = "auto") -> Tensor:
    """The packed part [B, Hq, D + 1] of q [B, Hq, 1, D] over k and v [B, Hkv, m, D], m >= 0, Hq a multiple of Hkv.

    `block` is a backend name or a Block. The queries that share a KV head become rows of one query tile, so that
    every key and value is read once and none is expanded.
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, head_dim)
    compute = resolve(block, q.device, q.dtype, head_dim) if isinstance(block, str) else block
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = compute(grouped, k, v, scale=scale, out_dtype=wide)
    part = q.new_empty((batch, heads, head_dim + 1), dtype=wide)
    part[..., :head_dim] = out.reshape(batch, heads, head_dim)
    part[..., head_dim] = lse.reshape(batch, heads)
    return part


def combine(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention over all keys, [B, Hq, 1, D] in `dtype`, from packed parts [S, B, Hq, D + 1] over disjoint keys.

    Always folded in the order of S, so that ranks with the same parts get the same bits.
    """
    out, lse = parts[0, :, :, None, :-1].clone(), parts[0, :, :, None, -1].clone()
    for part in parts[1:]:
        merge_(out, lse, part[:, :, None, :-1], part[:, :, None, -1])
    return out.to(dtype)
