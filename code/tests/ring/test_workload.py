"""Counts of pairs, rows and bytes against the ring steps and against masks written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_partition import partitions

from heteroring.ring.bounds import capacity_bound
from heteroring.ring.partition import Partition
from heteroring.ring.schedule import ring_steps
from heteroring.ring.workload import (
    causal_flops,
    extra_rows,
    first_step_rows,
    kv_bytes,
    pass_q_pairs,
    ring_time,
    score_pairs,
    shard_pairs,
    step_pairs,
    total_pairs,
)


def visible(queries, keys, causal):
    """Mask of score pairs between global positions, written out."""
    return (keys[None, :] <= queries[:, None]) | (not causal)


@given(partitions, st.booleans())
def test_pairs_equal_a_count_over_the_mask(partition, causal):
    ranks = range(partition.world_size)
    positions = [partition.positions(r) for r in ranks]
    for i in ranks:
        counts = [int(visible(positions[i], positions[j], causal).sum()) for j in ranks]
        assert [step_pairs(partition, i, j, causal) for j in ranks] == counts
        assert score_pairs(partition, causal)[i] == sum(counts)
    assert sum(score_pairs(partition, causal)) == total_pairs(partition.seq_len, causal)


def with_prefix(partition):
    """The partition, and no earlier tokens or some on each rank."""
    lens = st.tuples(*[st.integers(0, 9)] * partition.world_size)
    return st.tuples(st.just(partition), st.just(()) | lens)


@given(partitions.flatmap(with_prefix), st.booleans())
def test_the_schedule_computes_every_visible_pair_once_and_nothing_else(both, causal):
    partition, prefix_lens = both
    n, earlier = partition.seq_len, sum(prefix_lens)
    computed = np.zeros((n, earlier + n), dtype=int)
    for rank in range(partition.world_size):
        for step in ring_steps(partition, rank, causal, prefix_lens):
            start = sum(prefix_lens[: step.kv_rank])
            own = np.arange(start, start + step.prefix)
            keys = np.concatenate((own, earlier + partition.positions(step.kv_rank)))
            assert step.prefix == (prefix_lens[step.kv_rank] if prefix_lens else 0)
            for first_query, first_key, end in step.rectangles:
                rows, cols = partition.positions(rank)[first_query:], keys[first_key:end]
                block = np.ones((len(rows), len(cols)), dtype=int)
                computed[np.ix_(rows, cols)] += np.tril(block, step.prefix) if step.causal else block
        assert computed[partition.positions(rank)].sum() == score_pairs(partition, causal, prefix_lens)[rank]
    seen = np.hstack((np.ones((n, earlier), dtype=bool), visible(np.arange(n), np.arange(n), causal)))
    assert np.array_equal(computed, seen.astype(int))


@given(partitions, st.booleans())
def test_a_rank_starts_with_its_own_shard_and_each_rank_once(partition, causal):
    for rank, length in enumerate(partition.block_lens):
        mine = ring_steps(partition, rank, causal)
        assert [v.kv_rank for v in mine[:1]] == ([rank] if length else [])
        assert len({v.kv_rank for v in mine}) == len(mine)
        assert all(v.kv_rank == (rank - v.index) % partition.world_size for v in mine)


@given(st.lists(st.integers(0, 50).map(lambda n: 2 * n), min_size=1, max_size=6).filter(sum))
def test_zigzag_work_is_exactly_linear_in_tokens(lens):
    n, prefix_lens = sum(lens), tuple(range(len(lens)))
    assert score_pairs(Partition.zigzag(lens)) == tuple(length * (n + 1) // 2 for length in lens)
    longer = [length * (n + 1 + 2 * sum(prefix_lens)) // 2 for length in lens]
    assert score_pairs(Partition.zigzag(lens), prefix_lens=prefix_lens) == tuple(longer)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(sum))
def test_odd_lengths_move_zigzag_work_by_less_than_one_row(lens):
    n = sum(lens)
    for length, pairs in zip(lens, score_pairs(Partition.zigzag(lens)), strict=True):
        assert abs(pairs - length * (n + 1) / 2) <= n / 2


def test_even_contiguous_shards_do_a_quarter_and_three_quarters():
    n = 4096
    first, second = score_pairs(Partition.contiguous((n // 2, n // 2)))
    assert (first, second) == (n * n // 8 + n // 4, 3 * n * n // 8 + n // 4)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_shard_pairs_of_a_whole_sequence(layout):
    assert shard_pairs(layout, 101, 0, 101) == 101 * 102 // 2
    assert shard_pairs(layout, 101, 40, 0) == 0
    assert shard_pairs(layout, 101, 40, 7, causal=False) == 707


def test_a_causal_rank_receives_only_keys_it_sees():
    size = {"batch": 1, "kv_heads": 2, "head_dim": 8, "itemsize": 4}
    per_token = 2 * 2 * 8 * 4
    zigzag = Partition.zigzag((10, 6, 4))
    assert [kv_bytes(zigzag, r, **size) // per_token for r in range(3)] == [10, 5 + 4, 5 + 3]
    contiguous = Partition.contiguous((10, 6, 4))
    assert [kv_bytes(contiguous, r, **size) // per_token for r in range(3)] == [0, 10, 16]
    assert [kv_bytes(contiguous, r, causal=False, **size) // per_token for r in range(3)] == [10, 14, 16]


@given(partitions.flatmap(with_prefix), st.booleans())
def test_pairs_of_keys_are_counted_over_the_mask(both, causal):
    partition, prefix_lens = both
    positions = [partition.positions(r) for r in range(partition.world_size)]
    queries, earlier = np.arange(partition.seq_len), prefix_lens or (0,) * partition.world_size
    counts = [int(visible(queries, keys, causal).sum()) for keys in positions]
    expected = [count + len(queries) * before for count, before in zip(counts, earlier, strict=True)]
    assert list(pass_q_pairs(partition, causal, prefix_lens)) == expected
    assert sum(expected) == sum(score_pairs(partition, causal, prefix_lens))


def test_capacity_bound_is_the_parallel_sum():
    assert capacity_bound([2.0, 2.0]) == pytest.approx(1.0)
    assert capacity_bound([30.0, 300.0]) == pytest.approx(300 / 11)
    assert capacity_bound([7.0]) == pytest.approx(7.0)


@pytest.mark.parametrize("alone", [[], [1.0, 0.0], [1.0, -2.0], [float("nan")]])
def test_capacity_bound_refuses_times_that_are_none(alone):
    with pytest.raises(ValueError, match=r"undefined|must be positive"):
        capacity_bound(alone)


def test_causal_flops_of_the_published_layer():
    assert causal_flops(1, 32, 128, total_pairs(65536)) == 4 * 32 * 128 * 65536 * 65537 // 2


@given(partitions.flatmap(with_prefix), st.booleans())
def test_extra_rows_are_those_of_the_rectangles_beyond_the_own_keys(both, causal):
    partition, prefix_lens = both
    if 1 in partition.block_lens:  # it may have no head for those behind to meet; counted all the same
        return
    earlier = prefix_lens if any(prefix_lens) else ()
    for rank, rows in enumerate(extra_rows(partition, causal, prefix_lens)):
        length = partition.block_lens[rank]
        remote = [step for step in ring_steps(partition, rank, causal, earlier) if step.kv_rank != rank]
        assert rows == sum(length - first_query for step in remote for first_query, *_ in step.rectangles)
        first = [step.rectangles[0][0] for step in remote if step.index == 1]
        assert first_step_rows(partition, causal, prefix_lens)[rank] == sum(
            length - first_query for first_query in first
        )


def test_extra_rows_by_hand():
    # Zigzag: all rows meet the heads in front, tails meet those behind. A rank without tokens has no steps.
    assert extra_rows(Partition.zigzag((8, 0, 4, 6))) == (4 + 4, 0, 4 + 2, 6 + 6)
    assert extra_rows(Partition.contiguous((8, 0, 4, 6))) == (0, 0, 4, 12)
    assert extra_rows(Partition.zigzag((8, 0, 4, 6)), causal=False) == (16, 0, 8, 12)
    assert extra_rows(Partition.zigzag((8,))) == (0,)
    assert extra_rows(Partition.zigzag((3, 2))) == (2, 2)
    assert extra_rows(Partition.zigzag((1, 4))) == (1, 4)
    # Earlier tokens on ranks 1 and 2: all rows meet both, tails what 2 and 3 got; rank 1 meets rank 0 and 2, 3 behind.
    assert extra_rows(Partition.zigzag((8, 0, 4, 6)), prefix_lens=(0, 3, 3, 0)) == (8 + 8 + 4 + 4, 0, 4 + 4 + 2, 18)
    assert extra_rows(Partition.contiguous((8, 4)), prefix_lens=(0, 3)) == (8, 4)


def test_next_rows_by_hand():
    assert first_step_rows(Partition.zigzag((8, 4, 6))) == (4, 4, 6)
    assert first_step_rows(Partition.zigzag((8, 0, 4, 6))) == (4, 0, 0, 6)
    assert first_step_rows(Partition.contiguous((8, 4, 6))) == (0, 4, 6)
    assert first_step_rows(Partition.contiguous((8, 4, 6)), causal=False) == (8, 4, 6)
    assert first_step_rows(Partition.zigzag((8, 0))) == (0, 0)
    assert first_step_rows(Partition.zigzag((8,))) == (0,)
    # All rows meet the earlier tokens of rank 1 first; what it got, and the tail sees, comes after.
    assert first_step_rows(Partition.zigzag((8, 4)), prefix_lens=(0, 3)) == (8, 4)


@pytest.mark.parametrize("s", [0.1, 1 / 3, 0.5, 0.9])
def test_the_time_of_a_ring_is_what_its_closed_forms_say(s):
    """A slow rank of speed s and one of speed 1: time over the capacity bound of long prompts, by hand."""
    n, alone = 1_000_000, {"last": (1.0, 1 / s), "first": (1 / s, 1.0)}
    bound = 1 / (1 + s)
    small = round(n * s / (1 + s))
    even = {"last": (n // 2, n // 2), "first": (n // 2, n // 2)}
    proportional = {"last": (n - small, small), "first": (small, n - small)}
    expected = {
        ("contiguous", "last"): (3 * (1 + s) / (4 * s), (2 + s) / (1 + s)),
        ("contiguous", "first"): (max(1 + s, 3 * s * (1 + s)) / (4 * s), (1 + 2 * s) / (1 + s)),
        ("zigzag", "last"): ((1 + s) / (2 * s), 1.0),
        ("zigzag", "first"): ((1 + s) / (2 * s), 1.0),
    }
    for (layout, order), forms in expected.items():
        found = [ring_time(Partition(layout, lens[order]), alone[order]) / bound for lens in (even, proportional)]
        assert found == pytest.approx(forms, rel=1e-5), (layout, order)
