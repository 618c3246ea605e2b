"""The one-pass merge for CUDA against the merge written out. Without a GPU it runs in Triton's interpreter."""

import pytest
import torch

GPU = torch.cuda.is_available()
pytest.importorskip("triton")

from heteroring.kernels import merge_kernel  # noqa: E402
from heteroring.kernels.merge import merge_  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"


def parts(shape=(2, 3, 37, 24), dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=g).to(dtype), 4 * torch.randn(shape[:3], generator=g)) for _ in range(2)]


def both_ways(out, lse, part_out, part_lse):
    """(kernel's pair, pair of the merge on the CPU), from the same start."""
    mine, want = ((out.clone(), lse.clone()) for _ in range(2))
    mine = [x.to(DEVICE) for x in mine]
    merge_kernel.merge_(*mine, part_out.to(DEVICE), part_lse.to(DEVICE))
    merge_(*want, part_out, part_lse)
    return [x.cpu() for x in mine], want


@pytest.mark.parametrize("shape", [(1, 1, 1, 64), (2, 3, 37, 24), (1, 2, 129, 96)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_merge(shape, dtype):
    (out, lse), (part_out, part_lse) = parts(shape, dtype)
    (got, got_lse), (want, want_lse) = both_ways(out, lse, part_out, part_lse)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_lse, want_lse)


def test_a_part_rounded_to_16_bits_is_merged_into_fp32():
    (out, lse), _ = parts()
    _, (part_out, part_lse) = parts(dtype=torch.bfloat16, seed=1)
    (got, _), (want, _) = both_ways(out, lse, part_out, part_lse)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_rows_of_a_larger_result_are_merged_in_place():
    (out, lse), (part_out, part_lse) = parts((1, 4, 50, 64))
    spread = part_out[:, :, :13].transpose(1, 2).contiguous().transpose(1, 2)
    mine = out.to(DEVICE, copy=True), lse.to(DEVICE, copy=True)
    before = mine[0].clone(), mine[1].clone()
    merge_kernel.merge_(mine[0][:, :, 37:], mine[1][:, :, 37:], spread.to(DEVICE), part_lse[:, :, :13].to(DEVICE))
    assert torch.equal(mine[0][:, :, :37], before[0][:, :, :37])
    assert torch.equal(mine[1][:, :, :37], before[1][:, :, :37])
    want = out[:, :, 37:].clone(), lse[:, :, 37:].clone()
    merge_(*want, spread, part_lse[:, :, :13])
    torch.testing.assert_close(mine[0][:, :, 37:].cpu(), want[0])
    torch.testing.assert_close(mine[1][:, :, 37:].cpu(), want[1])


@pytest.mark.parametrize("masked", ["mine", "part", "both"])
def test_a_side_that_saw_nothing_leaves_the_other_as_it_is(masked):
    (out, lse), (part_out, part_lse) = parts()
    if masked != "part":
        out, lse = torch.zeros_like(out), torch.full_like(lse, -torch.inf)
    if masked != "mine":
        part_out, part_lse = torch.zeros_like(part_out), torch.full_like(part_lse, -torch.inf)
    (got, got_lse), _ = both_ways(out, lse, part_out, part_lse)
    survivor = (part_out, part_lse) if masked == "mine" else (out, lse)
    assert torch.equal(got, survivor[0])
    assert torch.equal(got_lse, survivor[1])


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_scores_far_beyond_exp_stay_finite(shift):
    (out, lse), (part_out, part_lse) = parts()
    (got, got_lse), _ = both_ways(out, lse, part_out, part_lse + shift)
    winner = (part_out, part_lse + shift) if shift > 0 else (out, lse)
    assert torch.equal(got, winner[0])
    assert torch.equal(got_lse, winner[1])


def test_nan_in_the_data_is_not_hidden():
    (out, lse), (part_out, part_lse) = parts()
    part_lse[0, 0, 3] = torch.nan
    (got, got_lse), _ = both_ways(out, lse, part_out, part_lse)
    assert got[0, 0, 3].isnan().all()
    assert got_lse[0, 0, 3].isnan()
    assert got.isnan().sum() == out.shape[-1]
