"""Decode attention, one query per head, as partial results over disjoint keys that are merged by their LSE.

The split-KV kernel (decode_split) computes them where it covers the operands, else a backend.

Each partial result is a packed part [B, Hq, D + 1] in fp32 (fp64 for fp64 inputs): the output over some of the keys in
the first D columns, its LSE, in natural log, in the last.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from heteroring.kernels import decode_split
from heteroring.kernels.backend import Backend, resolve
from heteroring.kernels.merge import merge_


def partials(
    q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str | Backend = "auto", cached: Tensor | None = None
) -> Tensor:
    """Attend to the keys that a rank holds, for decode.

    On CUDA "auto" and "triton" stand for the split-KV kernel where it covers the operands. Any other backend gives one
    part, with the queries that share a KV head as its query rows. Either way every key and value is read once, and none
    is expanded.

    Args:
        q: The query [B, Hq, 1, D]; Hq is a multiple of Hkv.
        k: Keys [B, Hkv, m, D]; m may be 0.
        v: Values [B, Hkv, m, D].
        scale: Factor on the scores.
        backend: Name of a backend, or a Backend.
        cached: Number of keys, from the first on, an integer tensor of one element; None for all m. The split-KV kernel
            reads it on the device; for any other backend the host waits for it.

    Returns:
        Packed parts [S, B, Hq, D + 1] over disjoint keys, S >= 1: output and LSE.
    """
    if _uses_split_kernel(backend, q, k, v):
        return decode_split.partials(q, k, v, scale, cached=cached)
    if cached is not None:
        k, v = (x[:, :, : int(cached)] for x in (k, v))
    batch, heads, _, head_dim = q.shape
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], head_dim)
    compute = resolve(backend, q.device, q.dtype, head_dim)
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = compute(grouped, k, v, scale=scale, out_dtype=wide)
    part = q.new_empty((1, batch, heads, head_dim + 1), dtype=wide)
    part[..., :head_dim] = out.reshape(batch, heads, head_dim)
    part[..., head_dim] = lse.reshape(batch, heads)
    return part


def merge_partials(parts: Tensor) -> Tensor:
    """Merge parts [S, B, Hq, D + 1] into one packed part [B, Hq, D + 1] over all their keys."""
    if len(parts) == 1:
        return parts[0]
    if parts.is_cuda and parts.dtype == torch.float32:
        return decode_split.combine(parts, torch.float32, with_lse=True)
    merged = parts[0].clone()
    out, lse = _unpacked(merged)
    for part in parts[1:]:
        merge_(out, lse, *_unpacked(part))
    return merged


def merge_to_output(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Merge parts over disjoint keys, always in the order of S, so that equal parts give bitwise equal outputs.

    Args:
        parts: Packed parts [S, B, Hq, D + 1].
        dtype: dtype of the result.

    Returns:
        The output [B, Hq, 1, D].
    """
    if parts.is_cuda and parts.dtype == torch.float32:
        return decode_split.combine(parts, dtype, with_lse=False)[:, :, None]
    return merge_partials(parts)[:, :, None, :-1].to(dtype).contiguous()


def _unpacked(part: Tensor) -> tuple[Tensor, Tensor]:
    """out [B, Hq, 1, D] and lse [B, Hq, 1] of a packed part, as views."""
    return part[:, :, None, :-1], part[:, :, None, -1]


def _uses_split_kernel(backend: str | Backend, q: Tensor, k: Tensor, v: Tensor) -> bool:
    if backend == "triton" and not q.is_cuda:
        return os.environ.get("TRITON_INTERPRET") == "1"
    return backend in ("auto", "triton") and decode_split.covers(q, k, v)
