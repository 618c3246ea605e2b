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


def rectangle64(q, k, v, scale, offset):
    """attention64 under a causal offset o: query i sees key j if and only if j <= i + o; with None, every key."""
    rows, keys = (torch.arange(x.shape[2], device=x.device) for x in (q, k))
    return attention64(q, k, v, *(() if offset is None else (rows + offset, keys)), scale=scale)


def assert_accurate(got, exact, own_error):
    """The accuracy rule: an error of at most twice that of PyTorch's own attention in the same dtype, plus 1e-6."""
    assert got.shape == exact.shape
    error = (got.double() - exact).abs().max()
    assert error <= 2 * own_error + 1e-6, f"error {error:.3g}, PyTorch's own {own_error:.3g}"


def blind_queries(out, lse, want_lse):
    """Which queries see no key. Their out must be 0 and LSE -inf, no other's LSE is, and nothing is NaN."""
    blind = want_lse == -torch.inf
    assert not out.isnan().any()
    assert torch.equal(lse == -torch.inf, blind)
    assert (out[blind] == 0).all()
    return blind


def assert_as_accurate_as_torch(out, lse, q, k, v, want, want_lse, mask=None, scale=None):
    """Assert that out and LSE keep the accuracy rule beside PyTorch's kernel for the CPU."""
    bias = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    own_out, own_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=bias, scale=scale
    )
    for got, own, exact in ((out, own_out, want), (lse, own_lse, want_lse)):
        assert_accurate(got, exact, (own.double() - exact).abs().max())
