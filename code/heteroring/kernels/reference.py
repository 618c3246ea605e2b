"""The reference backend: attention with every score materialised, in the precision of its inputs but at least fp32."""

import torch

from heteroring.kernels.causal_offset import backend_from_core


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, causal_offset: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale * q k^T) v and its log-sum-exp, every score materialised.

    q [B, Hq, m, D], k and v [B, Hkv, n, D] with Hq a multiple of Hkv. With `causal_offset` o, query i sees key j
    if and only if j <= i + o. Returns out [B, Hq, m, D] and lse [B, Hq, m] in fp32, or fp64 for fp64 inputs. A
    query that sees no key gives out 0 and lse -inf.
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


def _core(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return attention(q, k, v, scale=scale, causal_offset=0 if causal else None)


backend = backend_from_core(_core)
