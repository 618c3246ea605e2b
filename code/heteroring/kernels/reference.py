"""The reference backend: attention from its definition, in the precision of its inputs but at least fp32.

`attention` materialises every score. `backend` does so for some queries at a time, and so takes any head size in memory
linear in the length.
"""

import torch

from heteroring.kernels.backend_from_core import Pair, backend_from_core

# Scores that are materialised at a time, of all heads: 256 MiB in fp32, and three times that with their weights.
MOST_SCORES = 1 << 26


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, causal_offset: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale * q k^T) v and its log-sum-exp, every score materialised.

    Args:
        q: Queries [B, Hq, m, D]; Hq is a multiple of Hkv.
        k: Keys [B, Hkv, n, D].
        v: Values [B, Hkv, n, D].
        scale: Factor on the scores.
        causal_offset: Query i sees key j if and only if j <= i + causal_offset; None: all keys.

    Returns:
        out [B, Hq, m, D] and lse [B, Hq, m] in fp32, or fp64 for fp64 inputs. A query that sees no key gives out 0 and
        lse -inf.
    """
    batch, q_heads, m, head_dim = q.shape
    kv_heads, n = k.shape[1], k.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(dtype).reshape(batch, kv_heads, q_heads // kv_heads, m, head_dim)
    scores = torch.einsum("bhgmd,bhnd->bhgmn", grouped, k.to(dtype)) * scale
    if causal_offset is not None:
        visible = torch.ones(m, n, dtype=torch.bool, device=q.device).tril(causal_offset)
        scores = scores.masked_fill(~visible, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    # exp(-inf - -inf) of a query without keys is NaN; its weights are 0.
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1))
    out = torch.einsum("bhgmn,bhnd->bhgmd", weights, v.to(dtype))
    return out.reshape(batch, q_heads, m, head_dim), lse.reshape(batch, q_heads, m)


def in_chunks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> Pair:
    """`attention`, with a limit on the scores that are held at a time: MOST_SCORES, or those of one query.

    Args:
        q: Queries [B, Hq, m, D].
        k: Keys [B, Hkv, n, D].
        v: Values [B, Hkv, n, D].
        scale: Factor on the scores.
        causal: Whether query i sees only keys up to i, for m = n.

    Returns:
        (out, lse), as of `attention`.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    k, v = k.to(dtype), v.to(dtype)
    out, lse = q.new_empty(q.shape, dtype=dtype), q.new_empty(q.shape[:3], dtype=dtype)
    rows = max(1, MOST_SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    for start in range(0, q.shape[2], rows):
        some = slice(start, min(start + rows, q.shape[2]))
        seen = slice(0, some.stop if causal else None)
        offset = start if causal else None
        out[:, :, some], lse[:, :, some] = attention(
            q[:, :, some], k[:, :, seen], v[:, :, seen], scale=scale, causal_offset=offset
        )
    return out, lse


backend = backend_from_core(in_chunks)
