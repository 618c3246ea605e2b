"""Attention in fp64 over global positions, written independently of the package, and the accuracy rule."""

import torch


def attention64(q, k, v, q_positions=None, k_positions=None, scale=None):
    """Softmax attention in fp64; with positions, a query sees the keys at or before its own. Returns out, lse."""
    q, k, v = (x.double() for x in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if q_positions is not None:
        scores = scores.masked_fill(k_positions[None, :] > q_positions[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v, lse


def assert_as_accurate_as_torch(out, lse, q, k, v, want, want_lse, mask=None, scale=None):
    """Errors of out and LSE against fp64 are at most twice those of PyTorch's kernel in the same dtype, plus 1e-6."""
    bias = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    own_out, own_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=bias, scale=scale
    )
    for got, own, exact in ((out, own_out, want), (lse, own_lse, want_lse)):
        assert got.shape == exact.shape
        limit = 2 * (own.double() - exact).abs().max() + 1e-6
        assert (got.double() - exact).abs().max() <= limit
