"""Rebalanced chunks of plain ring attention, by the busy times of all ranks, as in a user's program."""

import time

import pytest
import torch

import heteroring as hr
from heteroring.kernels.backend import resolve
from oracle import assert_as_accurate_as_torch

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
CHUNKS = (24, 24, 24, 24, 7)
MILLISECONDS = 4.0  # per query, on a rank at full speed


def whole():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, heads, sum(CHUNKS), HEAD_DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS)]


def chunked(rank, world_size, late):
    """(positions, out, lse) of this rank's tokens, the splits, and the seconds observed; the last rank is slow.

    A chunk is observed only after the next `late` chunks have been queued.
    """
    compute = resolve("auto", torch.device("cpu"))

    def block(q, k, v, **options):
        if options.get("running") is None:
            time.sleep(q.shape[2] * MILLISECONDS / 1e3 * (4 if rank == world_size - 1 else 1))
        return compute(q, k, v, **options)

    rebalancer, queued = hr.Rebalancer((1,) * world_size), []
    keys = values = torch.empty(1, KV_HEADS, 0, HEAD_DIM)
    held, done, found, splits, observed = (0,) * world_size, 0, [], [], []
    for tokens in CHUNKS:
        partition, busy = rebalancer.partition(tokens), hr.BusyTime(block)
        q, k, v = (hr.shard(x[:, :, done : done + tokens], partition, rank, 2) for x in whole())
        out, lse = hr.ring_attention(q, k, v, partition, prefix=hr.Prefix(keys, values, held), block=busy)
        queued.append((partition, busy))
        if len(queued) > late:
            partition_then, busy = queued.pop(0)
            observed.append(busy.of_all_ranks())
            rebalancer.observe(partition_then, observed[-1])
        found.append((done + torch.from_numpy(partition.positions(rank)), out, lse))
        keys, values = torch.cat((keys, k), 2), torch.cat((values, v), 2)
        held = tuple(old + new for old, new in zip(held, partition.block_lens, strict=True))
        done += tokens
        splits.append(partition.block_lens)
    return [torch.cat(parts, -1 if parts[0].dim() == 1 else 2) for parts in zip(*found, strict=True)], splits, observed


@pytest.mark.parametrize("late", [0, 1])
def test_splits_follow_busy_times_and_results_stay_as_accurate_as_torch(ranks, late):
    q, k, v = whole()
    results = ranks(3).run(chunked, late)
    order = torch.cat([positions for (positions, _, _), _, _ in results]).argsort()
    out, lse = (torch.cat([parts[i] for parts, _, _ in results], 2)[:, :, order] for i in (1, 2))
    assert_as_accurate_as_torch(out, lse, q, k, v, offset=0)
    splits, observed = results[0][1:]
    assert all(each[1:] == (splits, observed) for each in results)
    assert splits[: 1 + late] == [(8, 8, 8)] * (1 + late)
    assert splits[1 + late][2] <= 4
    assert len(observed) == len(CHUNKS) - late
    for lens, seconds in zip(splits, observed, strict=False):
        for length, each, slower in zip(lens, seconds, (1, 1, 4), strict=True):
            assert each >= length * slower * MILLISECONDS / 1e3
    # The others' waits for the slow rank are not counted.
    assert observed[0][0] < 0.8 * observed[0][2]


def alone(rank, world_size):
    busy = hr.BusyTime(lambda q, k, v, **options: (time.sleep(0.01), q, k)[1:])
    group = torch.distributed.new_group([rank], use_local_synchronization=True)
    q = torch.ones(1, 1, 3, 8)
    hr.ring_attention(q, q, q, hr.Partition.zigzag((3,)), group, block=busy)
    return busy.of_all_ranks(group), busy.of_all_ranks(group)


def test_what_was_asked_for_is_not_counted_again(ranks):
    for first, second in ranks(2).run(alone):
        assert first[0] >= 0.01
        assert second == (0,)
