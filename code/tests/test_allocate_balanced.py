"""`balanced` against every split there is, and against the mathematics of the two layouts."""

from itertools import accumulate, combinations_with_replacement, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heteroring.allocate.balanced import balanced, predicted_seconds
from heteroring.ring.partition import LAYOUTS, Partition
from heteroring.ring.work import score_pairs

speed = st.one_of(st.integers(1, 10).map(float), st.floats(1e-3, 1e3))


def splits(seq_len, world_size):
    """Every tuple of `world_size` lengths that sum to `seq_len`."""
    for borders in combinations_with_replacement(range(seq_len + 1), world_size - 1):
        yield tuple(stop - start for start, stop in pairwise((0, *borders, seq_len)))


def makespan(layout, lens, speeds, causal):
    pairs = score_pairs(Partition(layout, lens), causal)
    return max(work / speed for work, speed in zip(pairs, speeds, strict=True))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "dense"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("world_size", "longest"), [(1, 9), (2, 24), (3, 11), (4, 7)])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_no_split_is_faster(layout, causal, world_size, longest, data):
    seq_len = data.draw(st.integers(1, longest))
    speeds = data.draw(st.lists(speed, min_size=world_size, max_size=world_size))
    lens = balanced(seq_len, speeds, layout, causal)
    assert len(lens) == world_size
    assert sum(lens) == seq_len
    assert min(lens) >= 0
    best = min(makespan(layout, other, speeds, causal) for other in splits(seq_len, world_size))
    assert makespan(layout, lens, speeds, causal) == best


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "dense"])
@pytest.mark.parametrize("layout", LAYOUTS)
@given(seq_len=st.integers(1, 10**6), speeds=st.lists(speed, min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_long_sequences_beat_the_rounded_ideal_and_respect_the_bound(layout, causal, seq_len, speeds):
    # Ideal borders in real numbers: work is linear in tokens, but quadratic for a causal contiguous layout.
    lens = balanced(seq_len, speeds, layout, causal)
    assert sum(lens) == seq_len
    assert min(lens) >= 0
    power = 0.5 if causal and layout == "contiguous" else 1
    shares = [total / sum(speeds) for total in accumulate(speeds)]
    borders = [0, *(round(seq_len * min(share, 1.0) ** power) for share in shares[:-1]), seq_len]
    ideal = tuple(stop - start for start, stop in pairwise(borders))
    work = sum(score_pairs(Partition(layout, lens), causal))
    time = makespan(layout, lens, speeds, causal)
    assert work / sum(speeds) * (1 - 1e-12) <= time <= makespan(layout, ideal, speeds, causal)


@pytest.mark.parametrize("percentages", [(100, 10), (100, 50, 20), (10, 100, 100, 70)])
def test_zigzag_is_proportional_to_speed_and_contiguous_is_not(percentages):
    # Uneven zigzag makes causal work linear in tokens; up to share f, a contiguous layout has done f^2 of it.
    seq_len = 65536
    whole = sum(percentages)
    zigzag = balanced(seq_len, percentages, "zigzag")
    assert all(abs(n - seq_len * p / whole) <= 1.5 for n, p in zip(zigzag, percentages, strict=True))
    contiguous = balanced(seq_len, percentages, "contiguous")
    for rank in range(len(percentages)):
        share = sum(percentages[: rank + 1]) / whole
        assert sum(contiguous[: rank + 1]) == pytest.approx(seq_len * share**0.5, abs=1.5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_ranks_share_the_slack_evenly(layout):
    # A makespan of two tokens a rank would also allow (2, 2, 0): the split that is level wins.
    assert sorted(balanced(4, (1, 1, 1), layout, causal=False)) == [1, 1, 2]
    assert balanced(4096, (3.7, 3.7), "zigzag") == (2048, 2048)
    lens = balanced(1003, (1.0,) * 8, layout, causal=False)
    assert max(lens) - min(lens) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "dense"])
def test_a_rank_not_worth_one_token_gets_none(layout, causal):
    assert balanced(16, (1.0, 1e-6), layout, causal) == (16, 0)
    assert balanced(16, (1e-6, 1.0, 1e-6), layout, causal) == (0, 16, 0)


def test_predicted_seconds_by_hand():
    # 8 tokens, zigzag 4 + 4: 18 causal pairs each; 4 * 2 * 3 * 64 operations a pair; 1 and 2 TFLOP/s.
    partition = Partition.zigzag((4, 4))
    seconds = predicted_seconds(partition, (1.0, 2.0), batch=2, heads=3, head_dim=64)
    assert seconds == pytest.approx((18 * 1536e-12, 18 * 1536e-12 / 2), rel=1e-15)
    assert predicted_seconds(Partition.contiguous((0, 2)), (1.0, 1.0)) == (0.0, 12e-12)
    assert predicted_seconds(Partition.contiguous((0, 2)), (1.0, 1.0), causal=False) == (0.0, 16e-12)


@pytest.mark.parametrize("speeds", [(1.0, 0.0), (1.0, -2.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_speed_that_is_not_positive_is_named(speeds):
    with pytest.raises(ValueError, match=f"speed of rank 1 is {speeds[1]}"):
        balanced(8, speeds)
    with pytest.raises(ValueError, match=f"speed of rank 1 is {speeds[1]}"):
        predicted_seconds(Partition.zigzag((4, 4)), speeds)


def test_missing_speeds_and_unknown_layout_are_named():
    with pytest.raises(ValueError, match="speeds is empty"):
        balanced(8, ())
    with pytest.raises(ValueError, match="3 speeds for 2 ranks"):
        predicted_seconds(Partition.zigzag((4, 4)), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="layout 'striped' is unknown"):
        balanced(8, (1.0, 1.0), "striped")
