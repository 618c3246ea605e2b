"""Apportionment of real shares to whole tokens, which sum to the sequence exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heteroring.allocators.apportion import apportion
from heteroring.allocators.even import even
from heteroring.allocators.uneven import uneven

weights = st.lists(st.floats(0, 1e12, allow_subnormal=True), min_size=1, max_size=9).filter(any)
totals = st.integers(0, 2**40)
percentages = st.lists(st.one_of(st.integers(1, 100), st.floats(1, 100)), min_size=1, max_size=9)


@given(weights, totals)
def test_parts_sum_to_the_total_and_lie_within_one_of_their_quota(weights, total):
    parts = apportion(weights, total)
    whole = sum(map(Fraction, weights))
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert type(part) is int
        assert part >= 0
        assert abs(part - total * Fraction(weight) / whole) < 1
        assert weight > 0 or part == 0


@given(weights, totals)
def test_a_larger_weight_never_gets_less(weights, total):
    parts = [part for _, part in sorted(zip(weights, apportion(weights, total), strict=True))]
    assert parts == sorted(parts)


@pytest.mark.parametrize(
    ("weights", "total", "parts"),
    [
        ((1, 1, 1), 5, (2, 2, 1)),  # equal remainders: index order
        ((2, 1), 4, (3, 1)),  # quotas 2.67 and 1.33
        ((5, 3, 2), 7, (4, 2, 1)),  # quotas 3.5, 2.1, 1.4
        ((0, 1, 0), 3, (0, 3, 0)),
        ((1, 1e-300), 10, (10, 0)),
        ((0.1, 0.2), 2**60, (384307168202282325, 768614336404564651)),  # beyond the integers that a float holds exactly
        ((7,), 0, (0,)),
    ],
)
def test_largest_remainder_by_hand(weights, total, parts):
    assert apportion(weights, total) == parts


@pytest.mark.parametrize(
    ("weights", "total", "message"),
    [
        ((1, -2), 4, "weight 1 is -2"),
        ((float("nan"),), 4, "weight 0 is nan"),
        ((1, float("inf")), 4, "weight 1 is inf"),
        ((0, 0), 4, "sum to 0"),
        ((), 4, "sum to 0"),
        ((1, 2), -1, "total is -1"),
    ],
)
def test_bad_shares_are_named(weights, total, message):
    with pytest.raises(ValueError, match=message):
        apportion(weights, total)


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_even_differs_by_one_token_at_most(seq_len, world_size):
    lens = even(seq_len, world_size)
    assert sum(lens) == seq_len
    assert len(lens) == world_size
    assert max(lens) - min(lens) <= 1


@given(st.integers(1, 10**6), percentages, st.data())
def test_raising_a_percentage_never_takes_tokens_from_its_rank(seq_len, percentages, data):
    rank = data.draw(st.integers(0, len(percentages) - 1))
    raised = list(percentages)
    raised[rank] = data.draw(st.floats(float(raised[rank]), 100))
    assert uneven(seq_len, raised)[rank] >= uneven(seq_len, percentages)[rank]


def test_uneven_agrees_with_the_published_splits():
    # l40x2_ring_sweep.csv of the published study, rows "uneven": rank 1 at 10, 50 and 90 %.
    assert uneven(65536, (100, 10)) == (59578, 5958)
    assert uneven(4096, (100, 90)) == (2156, 1940)
    assert uneven(4096, (100, 60)) == (2560, 1536)
