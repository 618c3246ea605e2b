"""Rings of 3 to 8 ranks paced to different speeds: their results, work and bytes, and the predicted order of splits.

A rank idles as under pacing, by a clock that counts score pairs. So two cores suffice for eight ranks, and every rank
has the speed that the simulation assumes.
"""

import time
from itertools import combinations, product
from types import SimpleNamespace

import pytest
import torch
from test_prefix import HEAD_DIM, KV_HEADS, earlier_tokens, new_tokens

import heteroring as hr
from heteroring.allocators.balanced import balanced
from heteroring.allocators.even import even
from heteroring.allocators.unit_costs import Cost
from heteroring.kernels.backend import resolve
from heteroring.planning.network import Network
from heteroring.planning.recorded_platform import SHARED_MEMORY
from heteroring.planning.simulate import simulate
from heteroring.ring.partition import LAYOUTS, Partition
from heteroring.ring.workload import kv_bytes, score_pairs
from heteroring.throttle.pacing import Pacing
from oracle import assert_as_accurate_as_torch, visible_keys
from traffic import received_bytes

PERCENTAGES = {
    3: (50, 20, 33),
    4: (50, 50, 33, 20),
    6: (20, 50, 25, 50, 33, 33),
    8: (50, 50, 50, 20, 50, 50, 33, 50),
}
TOKENS, EARLIER = 160, 200
# The least time of the ranks, and the least ratio of predicted times that can be told apart from noise.
BOUND_SECONDS, APART = 0.06, 1.75
REPETITIONS = 4


def paced(rank, world_size, layout, lens, prefix_lens, pair_seconds, seed):
    """Out and LSE, the score pairs and received bytes of a call, and start and stop of several."""
    partition, work = Partition(layout, lens), SimpleNamespace(pairs=0)
    q, k, v = (hr.shard(x, partition, rank, 2) for x in new_tokens(lens, torch.float32, seed))
    prefix = hr.Prefix(*earlier_tokens(prefix_lens, torch.float32, seed)[rank], prefix_lens) if prefix_lens else None
    compute = resolve("auto", q.device)

    def block(q, k, v, *, scale, causal_offset=None, **keywords):
        work.pairs += int(visible_keys(q.shape[2], k.shape[2], causal_offset).sum())
        return compute(q, k, v, scale=scale, causal_offset=causal_offset, **keywords)

    pacing = Pacing(PERCENTAGES[world_size][rank], busy=lambda: work.pairs * pair_seconds)
    slowed, times = pacing.wrap(block), []
    with received_bytes() as received:
        out, lse = hr.ring_attention(q, k, v, partition, prefix=prefix, block=block)
        once = work.pairs, sum(received)
        for _ in range(REPETITIONS):
            torch.distributed.barrier()
            start = time.perf_counter()
            hr.ring_attention(q, k, v, partition, prefix=prefix, block=slowed)
            times.append((start, time.perf_counter()))
    return out, lse, *once, times


@pytest.mark.parametrize(("world_size", "earlier"), [(3, EARLIER), (4, 0), (6, EARLIER), (8, 0)])
def test_rings_compute_receive_and_take_what_is_planned(ranks, world_size, earlier):
    seed = torch.seed() % 2**31
    slowness = [100 / percentage - 1 for percentage in PERCENTAGES[world_size]]  # the idle time that pacing adds
    pairs = TOKENS * (earlier + (TOKENS + 1) / 2)
    pair_seconds = BOUND_SECONDS * sum(1 / each for each in slowness) / pairs
    costs = [Cost(1e6 * pair_seconds * each) for each in slowness]
    prefix_lens = (*even(earlier, world_size - 1), 0) if earlier else ()
    network = Network.single_node(world_size, SHARED_MEMORY)
    predicted, measured = {}, {}
    for layout, name in product(LAYOUTS, ("even", "balanced")):
        held = {"prefix_lens": prefix_lens} if prefix_lens else {}
        lens = even(TOKENS, world_size) if name == "even" else balanced(TOKENS, costs, layout, **held)
        partition = Partition(layout, lens)
        found = ranks(world_size).run(paced, layout, lens, prefix_lens, pair_seconds, seed)
        outs, lses, computed, received, times = zip(*found, strict=True)
        check(outs, lses, partition, prefix_lens, seed)
        assert computed == score_pairs(partition, prefix_lens=prefix_lens)
        size = {"batch": 2, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "itemsize": 4}
        assert list(received) == [kv_bytes(partition, r, prefix_lens=prefix_lens, **size) for r in range(world_size)]
        simulated = simulate(partition, costs, network, 1, transport="p2p", prefix_lens=prefix_lens)
        predicted[layout, name] = simulated.latency_us / 1e6
        calls = [zip(*each, strict=True) for each in zip(*times, strict=True)]
        measured[layout, name] = min(max(stops) - min(starts) for starts, stops in calls)
        assert measured[layout, name] >= 0.97 * predicted[layout, name]
    told_apart = [
        (fast, slow)
        for fast, slow in combinations(sorted(predicted, key=predicted.get), 2)
        if predicted[slow] >= APART * predicted[fast]
    ]
    assert len(told_apart) >= 2, predicted
    for fast, slow in told_apart:
        assert measured[fast] < measured[slow], (fast, slow, predicted, measured)


def check(outs, lses, partition, prefix_lens, seed):
    """Out and LSE are as accurate as PyTorch's own in one process."""
    out, lse = (hr.unshard(list(each), partition, 2) for each in (outs, lses))
    q, k, v = new_tokens(partition.block_lens, torch.float32, seed)
    earlier = earlier_tokens(prefix_lens, torch.float32, seed)
    k, v = (torch.cat([each[i] for each in earlier] + [x], 2) for i, x in enumerate((k, v)))
    assert_as_accurate_as_torch(out, lse, q, k, v, offset=sum(prefix_lens))
