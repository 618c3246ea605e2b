"""Every backend on a GPU, against fp64 and beside the error of PyTorch's own kernel."""

import pytest
import torch

from gpu import one_gpu, poison, random_qkv
from heteroring.kernels.backend import resolve
from heteroring.kernels.merge import merge_
from oracle import assert_as_accurate_as_torch, assert_both_accurate, attention64, flash_errors

pytestmark = one_gpu

BACKENDS = ["triton", "cudnn", "flash"]
DEVICE = torch.device("cuda")


def positions(n, start=0):
    return torch.arange(start, start + n, device="cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "dense"])
@pytest.mark.parametrize("n", [1, 63, 129, 1537])
def test_a_square(backend, head_dim, dtype, causal, n):
    q, k, v = random_qkv(n, 8, 2, head_dim, dtype, seed=torch.seed() % 2**31)
    want, want_lse = attention64(q, k, v, *((positions(n), positions(n)) if causal else ()))
    poison()
    out, lse = resolve(backend, DEVICE)(q, k, v, scale=head_dim**-0.5, causal_offset=0 if causal else None)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert_both_accurate(out, lse, want, want_lse, flash_errors(q, k, v, causal, want, want_lse))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [1, 333, 1024])
def test_rows_of_a_shard_are_merged_into_their_part_of_a_result(backend, m):
    """A ring step of zigzag: a tail of the queries meets a prefix of another rank's keys."""
    compute = resolve(backend, DEVICE)
    q, k, v = random_qkv(2049, 32, 8, 128, torch.bfloat16, seed=torch.seed() % 2**31)
    tail, first, rest = slice(2049 - m, None), slice(0, 1000), slice(1000, 2049)
    out, lse = compute(q, k[:, :, first], v[:, :, first], scale=0.1)
    before, head = out[:, :, : tail.start].clone(), (out[:, :, tail].double(), lse[:, :, tail].double())
    got = compute(q[:, :, tail], k[:, :, rest], v[:, :, rest], scale=0.1, running=(out[:, :, tail], lse[:, :, tail]))
    assert got[0].data_ptr() == out[:, :, tail].data_ptr()
    assert torch.equal(out[:, :, : tail.start], before)
    if backend != "triton":
        # These round each part to 16 bits; the merge may add only the rounding of its result.
        part, part_lse = compute(q[:, :, tail], k[:, :, rest], v[:, :, rest], scale=0.1)
        merge_(*head, part.double(), part_lse.double())
        torch.testing.assert_close(out[:, :, tail].double(), head[0], rtol=2**-8, atol=1e-5)
        torch.testing.assert_close(lse[:, :, tail].double(), head[1], rtol=1e-5, atol=1e-5)
        return
    # The first part was rounded before; the merge may add an error as that of a single call.
    merge_(*head, *attention64(q[:, :, tail], k[:, :, rest], v[:, :, rest], scale=0.1))
    want, want_lse = attention64(q[:, :, tail], k, v, scale=0.1)
    errors = flash_errors(q[:, :, tail], k, v, False, want, want_lse, scale=0.1)
    assert_both_accurate(out[:, :, tail], lse[:, :, tail], *head, errors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_partial_result_in_fp32_merges_without_rounding(backend):
    compute = resolve(backend, DEVICE)
    q, k, v = random_qkv(700, 4, 4, 64, torch.bfloat16, seed=3)
    out, lse = compute(q, k[:, :, :300], v[:, :, :300], scale=0.125, out_dtype=torch.float32)
    assert out.dtype == torch.float32
    compute(q, k[:, :, 300:], v[:, :, 300:], scale=0.125, running=(out, lse))
    want, want_lse = attention64(q, k, v, scale=0.125)
    assert_both_accurate(out.bfloat16(), lse, want, want_lse, flash_errors(q, k, v, False, want, want_lse))


@pytest.mark.parametrize("backend", ["cudnn", "flash"])
def test_single_precision_is_refused(backend):
    q = torch.ones(1, 1, 4, 64, device="cuda")
    with pytest.raises(ValueError, match=f"backend '{backend}' computes bfloat16 and float16"):
        resolve(backend, DEVICE)(q, q, q, scale=1.0)


def test_auto_computes_whatever_it_is_given():
    for dtype, head_dim in ((torch.float32, 80), (torch.float32, 576), (torch.bfloat16, 80), (torch.bfloat16, 512)):
        q, k, v = random_qkv(65, 2, 2, head_dim, dtype, seed=5)
        out, _ = resolve("auto", DEVICE, dtype, head_dim)(q, k, v, scale=0.1, causal_offset=0)
        assert_as_accurate_as_torch(out, None, q, k, v, 0.1, 0)


def test_the_merge_in_one_pass_is_the_merge():
    g = torch.Generator("cuda").manual_seed(1)
    out, part = torch.randn(2, 2, 5, 1000, 96, generator=g, device="cuda").unbind()
    lse, part_lse = 3 * torch.randn(2, 2, 5, 1000, generator=g, device="cuda")
    want = out.double(), lse.double()
    merge_(*want, part.double(), part_lse.double())
    merge_(out, lse, part, part_lse)
    torch.testing.assert_close(out, want[0].float())
    torch.testing.assert_close(lse, want[1].float())
