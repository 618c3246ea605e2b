"""The ring in plain PyTorch: against attention in one piece, and as the oracle of the schedule and of the ring."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import heteroring as hr
from heteroring.ring import reference
from heteroring.ring.partition import LAYOUTS, Partition
from heteroring.ring.schedule import ring_steps
from oracle import attention64

partitions = st.builds(
    Partition, st.sampled_from(LAYOUTS), st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any).map(tuple)
)


def whole(seq_len, heads=4, kv_heads=2):
    g = torch.Generator().manual_seed(seq_len)
    return tuple(torch.randn(2, h, seq_len, 8, generator=g, dtype=torch.float64) for h in (heads, kv_heads, kv_heads))


@settings(max_examples=40, deadline=None)
@given(partitions, st.booleans())
def test_every_partition_gives_attention_in_one_piece(partition, causal):
    q, k, v = whole(partition.seq_len)
    positions = torch.arange(partition.seq_len)
    want, want_lse = attention64(q, k, v, *((positions, positions) if causal else ()))
    out, lse = reference.ring_attention(q, k, v, partition, causal)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, want_lse)


@settings(max_examples=40, deadline=None)
@given(partitions, st.booleans())
def test_the_rectangles_of_the_schedule_leave_out_nothing_that_a_query_sees(partition, causal):
    """Each rank's ring steps, dense but for its own KV, against all keys under a mask."""
    q, k, v = whole(partition.seq_len, kv_heads=4)
    want, want_lse = reference.ring_attention(q, k, v, partition, causal)
    for rank in range(partition.world_size):
        queries = hr.shard(q, partition, rank, 2)
        out, lse = torch.zeros_like(queries), queries.new_full(queries.shape[:-1], -torch.inf)
        for step in ring_steps(partition, rank, causal):
            rows = slice(step.first_query, None)
            keys, values = (hr.shard(x, partition, step.kv_rank, 2)[:, :, : step.keys] for x in (k, v))
            hidden = torch.ones(queries.shape[2], step.keys).triu(1).bool() if step.causal else torch.tensor(False)
            part = reference.attend(queries[:, :, rows], keys, values, hidden)
            out[:, :, rows], lse[:, :, rows] = reference.merge(out[:, :, rows], lse[:, :, rows], *part)
        torch.testing.assert_close(out, hr.shard(want, partition, rank, 2))
        torch.testing.assert_close(lse, hr.shard(want_lse, partition, rank, 2))


def ring(rank, world_size, layout, lens):
    partition = Partition(layout, lens)
    return hr.ring_attention(*(hr.shard(x, partition, rank, 2) for x in whole(partition.seq_len)), partition)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ring_over_processes_gives_the_same(ranks, layout):
    lens = (11, 0, 24)
    partition = Partition(layout, lens)
    results = zip(*ranks(3).run(ring, layout, lens), strict=True)
    for got, want in zip(results, reference.ring_attention(*whole(partition.seq_len), partition), strict=True):
        torch.testing.assert_close(hr.unshard(got, partition, 2), want)
