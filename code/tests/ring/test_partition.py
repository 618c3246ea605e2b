"""Partitions: spans and positions in both layouts, errors, and shard and unshard as inverses."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import heteroring as hr
from heteroring.ring.partition import LAYOUTS, Partition

block_lens = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum)
partitions = st.builds(Partition, st.sampled_from(LAYOUTS), block_lens.map(tuple))


@given(partitions)
def test_every_token_lies_on_exactly_one_rank(partition):
    positions = [partition.positions(rank) for rank in range(partition.world_size)]
    assert [len(p) for p in positions] == list(partition.block_lens)
    assert np.array_equal(np.sort(np.concatenate(positions)), np.arange(partition.seq_len))
    assert all(p.dtype == np.int64 for p in positions)


@given(partitions)
def test_positions_of_a_rank_ascend_and_follow_its_spans(partition):
    for rank in range(partition.world_size):
        positions = partition.positions(rank)
        assert np.all(np.diff(positions) > 0)
        spans = partition.spans(rank)
        assert positions.tolist() == [i for start, stop in spans for i in range(start, stop)]


@given(block_lens)
def test_contiguous_is_one_span_per_rank_in_rank_order(lens):
    partition = Partition.contiguous(lens)
    borders = np.concatenate([[0], np.cumsum(lens)]).tolist()
    assert [partition.spans(r) for r in range(len(lens))] == [
        ((start, stop),) for start, stop in itertools.pairwise(borders)
    ]


@given(block_lens)
def test_zigzag_heads_run_front_to_back_and_tails_mirror_them(lens):
    partition = Partition.zigzag(lens)
    front, back = 0, partition.seq_len
    for rank, length in enumerate(lens):
        head, tail = partition.spans(rank)
        assert head[0] == front
        assert tail[1] == back
        assert abs((head[1] - head[0]) - (tail[1] - tail[0])) == length % 2
        front, back = head[1], tail[0]
    assert front == back == partition.seq_len // 2


def test_zigzag_spans_of_the_published_shares():
    partition = hr.Partition.zigzag(block_lens=(59578, 5958))
    assert partition.spans(0) == ((0, 29789), (35747, 65536))
    assert partition.spans(1) == ((29789, 32768), (32768, 35747))
    assert (partition.seq_len, partition.world_size) == (65536, 2)


@pytest.mark.parametrize(
    ("layout", "lens", "error", "words"),
    [
        ("contiguous", (4, -1), ValueError, r"block_lens\[1\] is -1"),
        ("zigzag", (), ValueError, "at least one rank"),
        ("zigzag", (0, 0), ValueError, "sum to 0"),
        ("striped", (4, 4), ValueError, "layout 'striped' is unknown"),
        ("zigzag", (4, 2.5), TypeError, r"block_lens\[1\] is 2.5: a length is an integer"),
    ],
)
def test_bad_partitions_are_refused(layout, lens, error, words):
    with pytest.raises(error, match=words):
        Partition(layout, lens)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_partition_is_refused(rank):
    with pytest.raises(IndexError, match=f"rank {rank} is outside"):
        Partition.zigzag((3, 3)).spans(rank)


def test_equal_partitions_are_equal_and_hashable():
    assert Partition.zigzag([3, 4]) == Partition.zigzag(np.array([3, 4]))
    assert len({Partition.zigzag((3, 4)), Partition.zigzag((3, 4)), Partition.contiguous((3, 4))}) == 2


@given(partitions, st.sampled_from([0, 1, -1]))
def test_unshard_inverts_shard(partition, dim):
    shape = [2, 3, 2]
    shape[dim] = partition.seq_len
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    shards = [hr.shard(x, partition, rank, dim) for rank in range(partition.world_size)]
    for rank, part in enumerate(shards):
        assert torch.equal(part, x.index_select(dim, torch.from_numpy(partition.positions(rank))))
    assert torch.equal(hr.unshard(shards, partition, dim), x)


def test_shards_that_do_not_fit_are_refused():
    partition = Partition.zigzag((3, 4))
    with pytest.raises(ValueError, match="has 8 tokens, but block_lens"):
        hr.shard(torch.zeros(8, 2), partition, 0, 0)
    with pytest.raises(ValueError, match="1 shards were given for a partition of 2"):
        hr.unshard([torch.zeros(3)], partition, 0)
    with pytest.raises(ValueError, match="shard 1 has 3 tokens"):
        hr.unshard([torch.zeros(3), torch.zeros(3)], partition, 0)


@pytest.mark.parametrize(
    "odd", [torch.zeros(1, 2), torch.zeros(4, 2, 1), torch.zeros(4, 2, dtype=torch.half)], ids=["one", "deeper", "half"]
)
def test_shards_that_do_not_belong_together_are_refused(odd):
    """None of them is broadcast or cast."""
    with pytest.raises(ValueError, match=r"shard 1 is .*beside shard 0, it must be torch\.float32 of shape \(4, 2\)"):
        hr.unshard([torch.zeros(4, 3), odd], Partition.contiguous((3, 2)), 1)
