"""The merge of partial results against attention over all keys, with masked parts, extreme scores and NaN."""

import pytest
import torch

from heteroring.kernels.merge import merge_
from oracle import assert_as_accurate_as_torch, attention64


def pair(m=5, n=7, shift=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, length, 8, generator=g) for length in (m, n, n))
    out, lse = attention64(q, k, v)
    return out.float(), lse.float() + shift


def test_merged_parts_equal_attention_over_the_concatenated_keys():
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, n, 16, generator=g) for n in (9, 31, 31))
    out, lse = (x.float() for x in attention64(q, k[:, :, :11], v[:, :, :11]))
    for part in (slice(11, 12), slice(12, 31)):
        merge_(out, lse, *(x.float() for x in attention64(q, k[:, :, part], v[:, :, part])))
    assert_as_accurate_as_torch(out, lse, q, k, v)


def test_a_fully_masked_part_changes_nothing():
    out, lse = pair()
    before = out.clone(), lse.clone()
    merge_(out, lse, torch.zeros_like(out), torch.full_like(lse, -torch.inf))
    assert torch.equal(out, before[0])
    assert torch.equal(lse, before[1])


def test_the_first_part_replaces_an_empty_result():
    part_out, part_lse = pair()
    out, lse = torch.zeros_like(part_out), torch.full_like(part_lse, -torch.inf)
    merge_(out, lse, part_out, part_lse)
    assert torch.equal(out, part_out)
    assert torch.equal(lse, part_lse)


def test_nothing_merged_into_nothing_stays_nothing():
    out, lse = torch.zeros(1, 1, 3, 4), torch.full((1, 1, 3), -torch.inf)
    merge_(out, lse, out.clone(), lse.clone())
    assert torch.equal(out, torch.zeros(1, 1, 3, 4))
    assert torch.equal(lse, torch.full((1, 1, 3), -torch.inf))


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_scores_far_beyond_exp_stay_finite(shift):
    out, lse = pair(seed=2)
    part_out, part_lse = pair(shift=shift, seed=3)
    winner = (part_out, part_lse) if shift > 0 else (out.clone(), lse.clone())
    merge_(out, lse, part_out, part_lse)
    assert torch.equal(out, winner[0])
    assert torch.equal(lse, winner[1])


def test_nan_in_the_data_is_not_hidden():
    out, lse = pair()
    part_out, part_lse = pair(seed=4)
    part_lse[0, 0, 2] = torch.nan
    merge_(out, lse, part_out, part_lse)
    assert out[0, 0, 2].isnan().all()
    assert lse[0, 0, 2].isnan()
    assert out[0, 1].isfinite().all()
    assert lse[0, 1].isfinite().all()


def test_a_view_is_updated_in_place_and_only_there():
    out, lse = pair(m=6)
    before = out.clone(), lse.clone()
    part_out, part_lse = pair(m=4, seed=5)
    merge_(out[:, :, 2:], lse[:, :, 2:], part_out, part_lse)
    assert torch.equal(out[:, :, :2], before[0][:, :, :2])
    assert torch.equal(lse[:, :, :2], before[1][:, :, :2])
    assert not torch.equal(out[:, :, 2:], before[0][:, :, 2:])
