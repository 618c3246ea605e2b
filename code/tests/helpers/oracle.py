"""Attention in fp64 over global positions, written independently of the package, and the accuracy rule."""

import torch

# An error of LSE to allow twice where PyTorch computes none to compare with: rounding in fp32, of scores up to 100.
LSE_ROUNDING = 5e-6


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


def rectangle64(q, k, v, scale=None, offset=None):
    """attention64 under a causal offset o: query i sees key j if and only if j <= i + o; with None, every key."""
    rows, keys = (torch.arange(x.shape[2], device=x.device) for x in (q, k))
    return attention64(q, k, v, *(() if offset is None else (rows + offset, keys)), scale=scale)


def visible_keys(m, n, offset):
    """bool [m, n], True where query i sees key j, as in rectangle64."""
    return torch.ones(m, n, dtype=torch.bool) if offset is None else torch.ones(m, n, dtype=torch.bool).tril(offset)


def assert_accurate(got, exact, own_error):
    """The accuracy rule: an error of at most twice that of PyTorch's own attention in the same dtype, plus 1e-6."""
    assert got.shape == exact.shape
    error = (got.double() - exact).abs().max() if got.numel() else 0.0
    assert error <= 2 * own_error + 1e-6, f"error {error:.3g}, PyTorch's own {own_error:.3g}"


def assert_both_accurate(out, lse, want, want_lse, errors):
    """Assert that out and LSE keep the accuracy rule beside PyTorch's `errors`, and that every element was written.

    With few numbers PyTorch's own error may happen to be smaller than the rounding error of the largest one: then twice
    that is allowed.
    """
    for got, exact, own in ((out, want, errors[0]), (lse, want_lse, errors[1])):
        assert_accurate(got, exact, max(own, torch.finfo(got.dtype).eps / 2 * exact[exact.isfinite()].abs().max()))


def flash_errors(q, k, v, causal, want, want_lse, scale=None, first=0):
    """Largest errors of out and LSE of the FlashAttention kernel that comes with PyTorch, from query `first` on."""
    call = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    return [(own[:, :, first:] - exact).abs().max() for own, exact in zip(call[:2], (want, want_lse), strict=True)]


def assert_same_logits(got, want):
    """Assert that logits are, but for rounding in fp32, those of the same model in one process."""
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def assert_as_accurate_as_torch(out, lse, q, k, v, scale=None, offset=None, lse_error=None):
    """Assert that out, and LSE unless it is None, of a rectangle as that of rectangle64 keep the accuracy rule.

    For a query that sees no key, out must be 0 and LSE -inf; no other LSE is that, and nothing is NaN.
    lse_error: stands for PyTorch's own error of LSE.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    want, want_lse = rectangle64(q, k, v, scale, offset)
    seen = want_lse != -torch.inf
    assert out.shape == want.shape
    assert not out.isnan().any()
    assert (out[~seen] == 0).all()
    if lse is not None:
        assert torch.equal(lse != -torch.inf, seen)
    if not seen.any():
        return
    assert_accurate(out, want, out_error(q, k, v, scale, offset, want, seen))
    if lse is not None:
        own_error = _lse_error(q, k, v, scale, offset, want_lse, seen) if lse_error is None else lse_error
        assert_accurate(lse[seen], want_lse[seen], own_error)


def _on_cpu(q, k, v, scale, offset):
    """Out and LSE of PyTorch's kernel for the CPU."""
    hidden = ~visible_keys(q.shape[2], k.shape[2], offset)
    bias = None if offset is None else torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, -torch.inf)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=bias, scale=scale)


def out_error(q, k, v, scale, offset, want, seen):
    """Largest error of PyTorch's own attention on these operands, over the queries that see a key."""
    if q.is_cuda:
        mask = None if offset is None else visible_keys(q.shape[2], k.shape[2], offset).to(q.device)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        own = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    else:
        own, _ = _on_cpu(q, k, v, scale, offset)
    return (own.double() - want)[seen].abs().max()


def _lse_error(q, k, v, scale, offset, want_lse, seen):
    """Largest error of the log-sum-exp that PyTorch computes: in fp32, or with the GPU's 16-bit matrix units.

    The latter round less precisely than fp32 arithmetic, and PyTorch's kernels support no such mask: the error is taken
    with all keys visible.
    """
    if q.is_cuda and q.element_size() == 2:
        _, exact = rectangle64(q, k, k, scale)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        if torch.cuda.get_device_capability() >= (9, 0):
            q, k = (torch.nn.functional.pad(x, (0, -x.shape[3] % 8)) for x in (q, k))  # it supports no other head sizes
            own = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, k, None, True, scale=scale)[1]
        else:
            own = torch.ops.aten._scaled_dot_product_flash_attention(q, k, k, scale=scale)[1]
        return (own.reshape(exact.shape).double() - exact).abs().max()
    _, own = _on_cpu(q.cpu(), k.cpu(), v.cpu(), scale, offset)
    return (own.double() - want_lse.cpu())[seen.cpu()].abs().max()
