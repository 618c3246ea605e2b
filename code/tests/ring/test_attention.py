"""Ring attention over gloo ranks against fp64 over the whole sequence, and the work that each rank did."""

import pytest
import torch

import heteroring as hr
from heteroring.kernels.backend import resolve
from heteroring.ring.partition import Partition
from heteroring.ring.workload import kv_bytes, score_pairs
from oracle import assert_as_accurate_as_torch
from traffic import received_bytes

SHARES = {
    1: [(1,), (63,)],
    2: [(33, 31), (59, 5), (111, 0), (0, 17), (1, 1)],
    3: [(21, 22, 21), (40, 1, 23), (0, 33, 30), (17, 0, 0)],
    4: [(16, 16, 16, 16), (50, 3, 7, 3), (0, 20, 0, 11), (5, 1, 40, 17)],
}
CASES = [(world, lens) for world, choices in SHARES.items() for lens in choices]


def whole(seq_len, heads, kv_heads, dtype, head_dim=16, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, h, seq_len, head_dim, generator=g).to(dtype) for h in (heads, kv_heads, kv_heads))


def recording(pairs, block):
    """`block`, noting the score pairs of each call, none of which is empty or masked but on its diagonal."""

    def record(q, k, v, *, scale, causal_offset=None, **keywords):
        m, n = q.shape[2], k.shape[2]
        assert causal_offset in (None, 0)
        assert m > 0
        assert n > 0
        pairs.append(m * n if causal_offset is None else m * (m + 1) // 2)
        return block(q, k, v, scale=scale, causal_offset=causal_offset, **keywords)

    return record


def ring(rank, world_size, layout, lens, causal, dtype, seed):
    """This rank's out and LSE, the score pairs of each block that it computed, and the bytes that it received."""
    partition = Partition(layout, lens)
    q, k, v = (hr.shard(x, partition, rank, 2) for x in whole(partition.seq_len, 4, 2, dtype, seed=seed))
    pairs = []
    with received_bytes() as received:
        out, lse = hr.ring_attention(
            q, k, v, partition, causal=causal, block=recording(pairs, resolve("auto", q.device))
        )
    return out, lse, pairs, sum(received)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize(
    ("causal", "dtype"),
    [(True, torch.float32), (True, torch.bfloat16), (False, torch.float32)],
    ids=["causal-fp32", "causal-bf16", "dense-fp32"],
)
@pytest.mark.parametrize(("world_size", "lens"), CASES, ids=lambda x: str(x).replace(" ", ""))
def test_the_ring_is_as_accurate_as_torch_and_does_no_more_than_it_must(ranks, layout, causal, dtype, world_size, lens):
    """No rank computes a pair that is masked, or receives a key that it does not see."""
    partition = Partition(layout, lens)
    seed = torch.seed() % 2**31
    outs, lses, pairs, received = zip(*ranks(world_size).run(ring, layout, lens, causal, dtype, seed), strict=True)
    out, lse = hr.unshard(list(outs), partition, 2), hr.unshard(list(lses), partition, 2)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    q, k, v = whole(partition.seq_len, 4, 2, dtype, seed=seed)
    assert_as_accurate_as_torch(out, lse, q, k, v, offset=0 if causal else None)

    assert tuple(map(sum, pairs)) == score_pairs(partition, causal)
    if layout == "contiguous" and causal:
        expected = [sum(n > 0 for n in lens[: rank + 1]) if lens[rank] else 0 for rank in range(world_size)]
        assert list(map(len, pairs)) == expected
    size = {"batch": 2, "kv_heads": 2, "head_dim": 16, "itemsize": dtype.itemsize}
    assert list(received) == [kv_bytes(partition, rank, causal=causal, **size) for rank in range(world_size)]


def events(rank, world_size):
    """Order of posted transfers and computed blocks on this rank."""
    partition = Partition.zigzag((8,) * world_size)
    log = []
    send_receive = torch.distributed.batch_isend_irecv
    compute = resolve("auto", torch.device("cpu"))

    def post(operations):
        log.append("post")
        return send_receive(operations)

    def block(*args, **kwargs):
        log.append("compute")
        return compute(*args, **kwargs)

    torch.distributed.batch_isend_irecv = post
    try:
        q, k, v = (hr.shard(x, partition, rank, 2) for x in whole(partition.seq_len, 2, 2, torch.float32))
        hr.ring_attention(q, k, v, partition, block=block)
    finally:
        torch.distributed.batch_isend_irecv = send_receive
    return log


def test_a_transfer_is_posted_before_the_compute_that_hides_it(ranks):
    for log in ranks(4).run(events):
        assert log == ["post", "post", "compute", "compute", "post", "compute", "compute"]


def subgroup(rank, world_size):
    """Ranks 2 and 0, in this order of creation, form a ring of their own."""
    group = torch.distributed.new_group([0, 2])
    if rank not in (0, 2):
        return None
    partition = Partition.zigzag((9, 4))
    mine = torch.distributed.get_rank(group)
    q, k, v = (hr.shard(x, partition, mine, 2) for x in whole(13, 2, 2, torch.float32))
    return hr.ring_attention(q, k, v, partition, group=group, scale=0.7)[0]


def test_a_ring_may_be_a_subgroup(ranks):
    first, outside, second = ranks(3).run(subgroup)
    assert outside is None
    got = hr.unshard([first, second], Partition.zigzag((9, 4)), 2)
    assert_as_accurate_as_torch(got, None, *whole(13, 2, 2, torch.float32), 0.7, 0)


def test_one_rank_needs_no_process_group():
    q, k, v = whole(37, 4, 2, torch.float64)
    out, lse = hr.ring_attention(q, k, v, Partition.zigzag((37,)))
    assert_as_accurate_as_torch(out, lse, q, k, v, offset=0)
