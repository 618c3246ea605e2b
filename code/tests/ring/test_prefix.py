"""Ring attention of new tokens over earlier ones: against fp64, the work and bytes of each rank, and bad prefixes."""

import re

import pytest
import torch

import heteroring as hr
from heteroring.kernels.backend import resolve
from heteroring.ring.partition import LAYOUTS, Partition
from heteroring.ring.pass_q import passes_queries
from heteroring.ring.prefix import concatenated
from heteroring.ring.workload import kv_bytes, pass_q_bytes, pass_q_pairs, score_pairs
from oracle import assert_as_accurate_as_torch, visible_keys
from ranks import RankError
from traffic import received_bytes

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
# New tokens by rank, and earlier ones.
SHARES = {
    1: [((21,), (13,))],
    2: [((33, 31), (20, 44)), ((0, 17), (11, 0)), ((1, 1), (0, 25)), ((17, 0), (8, 0))],
    3: [((0, 33, 2), (16, 0, 16)), ((17, 0, 0), (0, 0, 3))],
    4: [((5, 1, 40, 0), (0, 31, 2, 7)), ((2, 3, 0, 9), (0, 0, 0, 0))],
}
CASES = [(world, *each) for world, choices in SHARES.items() for each in choices]


def random_kv(tokens, heads, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, heads, tokens, HEAD_DIM, generator=g).to(dtype)


def new_tokens(lens, dtype, seed):
    return [random_kv(sum(lens), h, dtype, seed + i) for i, h in enumerate((HEADS, KV_HEADS, KV_HEADS))]


def earlier_tokens(lens, dtype, seed):
    """Keys and values of the earlier tokens of each rank."""
    return [tuple(random_kv(n, KV_HEADS, dtype, seed + 10 + 2 * r + i) for i in (0, 1)) for r, n in enumerate(lens)]


def ring(rank, world_size, layout, lens, prefix_lens, causal, dtype, seed, cached, passing="kv"):
    """This rank's out and LSE, its score pairs, the bytes that it received, and how many tensors were concatenated."""
    partition = Partition(layout, lens)
    q, k, v = (hr.shard(x, partition, rank, 2) for x in new_tokens(lens, dtype, seed))
    earlier = earlier_tokens(prefix_lens, dtype, seed)[rank]
    if cached:  # in one buffer, the new ones behind the earlier ones
        place = prefix_lens[rank]
        buffers = [
            torch.nn.functional.pad(torch.cat(both, 2), (0, 0, 0, 7)) for both in zip(earlier, (k, v), strict=True)
        ]
        earlier = tuple(buffer[:, :, :place] for buffer in buffers)
        k, v = (buffer[:, :, place : place + lens[rank]] for buffer in buffers)
    pairs, copies = [], []
    block, concatenate, all_to_all = resolve("auto", q.device), torch.cat, torch.distributed.all_to_all_single

    def record(q, k, v, *, scale, causal_offset=None, **keywords):
        m, n = q.shape[2], k.shape[2]
        assert m > 0
        assert n > 0
        pairs.append(int(visible_keys(m, n, causal_offset).sum()))
        return block(q, k, v, scale=scale, causal_offset=causal_offset, **keywords)

    def cat(*args, **keywords):
        copies.append(args)
        return concatenate(*args, **keywords)

    def exchange(into, rows, received_rows, sent_rows, group):
        own = received_rows[rank]
        received.append((len(into) - own) * (into[0].nbytes if len(into) else 0))
        return all_to_all(into, rows, received_rows, sent_rows, group=group)

    torch.distributed.all_to_all_single, torch.cat = exchange, cat
    prefix = hr.Prefix(*earlier, prefix_lens)
    try:
        with received_bytes() as received:
            out, lse = hr.ring_attention(
                q, k, v, partition, causal=causal, prefix=prefix, block=record, passing=passing
            )
    finally:
        torch.distributed.all_to_all_single, torch.cat = all_to_all, concatenate
    return out, lse, sum(pairs), sum(received), len(copies)


def assert_right(ranks, layout, lens, prefix_lens, causal, dtype, cached=False, passing="kv"):
    """What each rank computed, received and copied, in a call whose results are those of PyTorch."""
    partition = Partition(layout, lens)
    seed = torch.seed() % 2**31
    arguments = (layout, lens, prefix_lens, causal, dtype, seed, cached, passing)
    outs, lses, pairs, received, copies = zip(*ranks(len(lens)).run(ring, *arguments), strict=True)
    out, lse = hr.unshard(list(outs), partition, 2), hr.unshard(list(lses), partition, 2)
    assert out.dtype == dtype
    q, k, v = new_tokens(lens, dtype, seed)
    earlier = earlier_tokens(prefix_lens, dtype, seed)
    k, v = (torch.cat([each[i] for each in earlier] + [x], 2) for i, x in enumerate((k, v)))
    offset = sum(prefix_lens) if causal else None
    assert_as_accurate_as_torch(out, lse, q, k, v, offset=offset)
    assert sum(pairs) == visible_keys(q.shape[2], k.shape[2], offset).sum()
    return pairs, received, copies


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("causal", "dtype", "cached"),
    [(True, torch.float32, False), (True, torch.bfloat16, True), (False, torch.float32, False)],
    ids=["causal-fp32", "causal-bf16-cached", "dense-fp32"],
)
@pytest.mark.parametrize(("world_size", "lens", "prefix_lens"), CASES, ids=lambda x: str(x).replace(" ", ""))
def test_new_tokens_see_all_earlier_ones_and_no_rank_does_more_than_it_must(
    ranks, layout, causal, dtype, cached, world_size, lens, prefix_lens
):
    partition = Partition(layout, lens)
    pairs, received, copies = assert_right(ranks, layout, lens, prefix_lens, causal, dtype, cached)
    assert pairs == score_pairs(partition, causal, prefix_lens)
    size = {"batch": 2, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "itemsize": dtype.itemsize}
    assert list(received) == [
        kv_bytes(partition, rank, causal=causal, prefix_lens=prefix_lens, **size) for rank in range(world_size)
    ]
    if cached:
        assert not any(copies)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("causal", "dtype"),
    [(True, torch.float32), (True, torch.bfloat16), (False, torch.float64)],
    ids=["causal-fp32", "causal-bf16", "dense-fp64"],
)
@pytest.mark.parametrize(
    ("lens", "prefix_lens"),
    [((3, 2), (20, 44)), ((0, 7), (11, 0)), ((5, 4, 0), (16, 0, 3)), ((0, 1, 0), (9, 9, 0)), ((2, 3, 0, 9), (0,) * 4)],
    ids=lambda x: str(x).replace(" ", ""),
)
def test_queries_that_are_passed_see_the_same_and_each_rank_computes_the_pairs_of_its_keys(
    ranks, layout, causal, dtype, lens, prefix_lens
):
    partition = Partition(layout, lens)
    pairs, received, _ = assert_right(ranks, layout, lens, prefix_lens, causal, dtype, passing="q")
    assert pairs == pass_q_pairs(partition, causal, prefix_lens)
    size = {"batch": 2, "heads": HEADS, "head_dim": HEAD_DIM, "itemsize": dtype.itemsize}
    assert list(received) == [pass_q_bytes(partition, r, prefix_lens=prefix_lens, **size) for r in range(len(lens))]


def bytes_received(rank, world_size, lens, prefix_lens, keywords):
    """Bytes of keys, and of queries and partial results, that this rank receives; and its out."""
    partition = Partition.zigzag(lens)
    q, k, v = (hr.shard(x, partition, rank, 2) for x in new_tokens(lens, torch.float32, 3))
    prefix = hr.Prefix(*earlier_tokens(prefix_lens, torch.float32, 3)[rank], prefix_lens)
    received = {"kv": 0, "q": 0}
    send_receive, all_to_all = torch.distributed.batch_isend_irecv, torch.distributed.all_to_all_single

    def keys(operations):
        received["kv"] += sum(op.tensor.nbytes for op in operations if op.op is torch.distributed.irecv)
        return send_receive(operations)

    def queries(into, *rest, **group):
        received["q"] += into.nbytes
        return all_to_all(into, *rest, **group)

    torch.distributed.batch_isend_irecv, torch.distributed.all_to_all_single = keys, queries
    try:
        out, _ = hr.ring_attention(q, k, v, partition, prefix=prefix, **keywords)
    finally:
        torch.distributed.batch_isend_irecv, torch.distributed.all_to_all_single = send_receive, all_to_all
    return received, out


def own_block(q, k, v, **keywords):
    return resolve("auto", q.device)(q, k, v, **keywords)


def test_queries_are_passed_where_they_are_fewer_bytes(ranks):
    # A new token has 4 x 16 numbers, and 4 x 17 come back; an earlier one has 2 x 2 x 16.
    for lens, prefix_lens, keywords, queries in (
        ((1, 1), (150, 150), {}, True),
        ((1, 1), (150, 150), {"passing": "kv"}, False),
        ((1, 1), (150, 150), {"block": own_block}, False),
        ((20, 20), (4, 4), {}, False),
        ((20, 20), (4, 4), {"passing": "q"}, True),
        ((3, 3), (0, 0), {}, False),
    ):
        results = ranks(2).run(bytes_received, lens, prefix_lens, keywords)
        assert all((found["q"] > 0, found["kv"] > 0) == (queries, not queries) for found, _ in results)
        for (_, out), (_, other) in zip(
            results, ranks(2).run(bytes_received, lens, prefix_lens, {"passing": "kv"}), strict=True
        ):
            torch.testing.assert_close(out, other, atol=1e-5, rtol=1e-5)


def failing(rank, world_size):
    """Rank 1's backend fails while queries are passed; the next call is right."""
    partition, prefix_lens = Partition.zigzag((3, 2)), (20, 44)
    q, k, v = (hr.shard(x, partition, rank, 2) for x in new_tokens((3, 2), torch.float32, 0))
    prefix = hr.Prefix(*earlier_tokens(prefix_lens, torch.float32, 0)[rank], prefix_lens)

    def block(*args, **keywords):
        if rank == 1:
            raise RuntimeError("a GPU fell off the bus")
        return resolve("auto", q.device)(*args, **keywords)

    words = ""
    try:
        hr.ring_attention(q, k, v, partition, prefix=prefix, block=block, passing="q")
    except ValueError as error:
        words = str(error)
    both = [hr.ring_attention(q, k, v, partition, prefix=prefix, passing=passing)[0] for passing in ("q", "kv")]
    return words, *both


def test_a_backend_that_fails_while_queries_are_passed_is_an_error_on_every_rank(ranks):
    for words, out, other in ranks(2).run(failing):
        assert words.endswith("a GPU fell off the bus")
        torch.testing.assert_close(out, other, atol=1e-5, rtol=1e-5)


LLAMA = {"batch": 1, "heads": 32, "kv_heads": 8, "head_dim": 128, "itemsize": 2}


@pytest.mark.parametrize(
    ("lens", "prefix_lens", "device", "queries"),
    [
        ((16, 16), (4096, 4096), "cpu", True),
        ((1, 0), (4096, 4096), "cpu", True),
        ((64, 64), (4096, 4096), "cpu", False),  # enough tokens for compute to hide the transfer of keys
        ((16, 16), (80, 80), "cpu", False),  # nearly as many bytes
        ((8,) * 8, (8192, *(0,) * 7), "cpu", False),  # all pairs would be one rank's
        ((16, 16), (4096, 4096), "cuda", False),  # not measured
    ],
)
def test_when_queries_are_passed(lens, prefix_lens, device, queries):
    assert passes_queries(Partition.zigzag(lens), prefix_lens, True, device, **LLAMA) == queries


def test_keys_that_adjoin_are_not_copied():
    cache = torch.arange(2 * 3 * 9 * 4.0).view(2, 3, 9, 4)
    both = concatenated(cache[:, :, 1:4], cache[:, :, 4:8])
    assert both.data_ptr() == cache[:, :, 1:].data_ptr()
    assert torch.equal(both, cache[:, :, 1:8])
    for apart in (cache[:, :, 5:8], cache[:, :, 4:8].clone(), cache.clone()[:, :, 4:8]):
        assert torch.equal(concatenated(cache[:, :, 1:4], apart), torch.cat((cache[:, :, 1:4], apart), 2))


def call(rank, world_size, per_rank):
    """Each rank calls with a prefix of its own, (tokens, lens), or another object. Nothing may be sent."""
    partition, given = Partition.zigzag((6, 4)), per_rank[rank]
    q, k, v = (hr.shard(x, partition, rank, 2) for x in new_tokens((6, 4), torch.float32, 0))
    prefix = given
    if isinstance(given, tuple):
        tokens, lens = given
        prefix = hr.Prefix(k.new_ones(2, KV_HEADS, tokens, HEAD_DIM), k.new_ones(2, KV_HEADS, tokens, HEAD_DIM), lens)
    send_receive = torch.distributed.batch_isend_irecv
    torch.distributed.batch_isend_irecv = None
    try:
        hr.ring_attention(q, k, v, partition, prefix=prefix)
    finally:
        torch.distributed.batch_isend_irecv = send_receive


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ((3, (3, 2)), (1, (3, 1)), r"ranks disagree on prefix lengths: rank 0 has \(3, 2\), rank 1 has \(3, 1\)"),
        ((3, (3, 2)), None, r"ranks disagree on prefix lengths: rank 0 has \(3, 2\), rank 1 has \(\)"),
        ((3, (3, 2)), (3, (3, 2)), r"prefix\.k is of shape \(2, 2, 3, 16\): rank 1 of prefix\.lens \(3, 2\) needs"),
        ((3, (3, 2)), (2, (3, 2, 0)), r"prefix\.lens is \(3, 2, 0\): it must be 2 lengths"),
        ((3, (3, -2)), (2, (3, 2)), r"prefix\.lens\[1\] is -2: a rank holds 0 earlier tokens or more"),
        ((3, (3, 2)), "kv", "prefix is 'kv': it must be a Prefix, or None"),
    ],
    ids=["lens", "none", "shape", "ranks", "negative", "type"],
)
def test_a_bad_prefix_is_an_error_on_every_rank_before_anything_is_sent(ranks, first, second, words):
    for result in ranks(2).attempt(call, [first, second]):
        assert isinstance(result, RankError)
        assert result.kind == "Disagreement"
        assert re.search(words, result.text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": torch.ones(1, 1, 3, 8, dtype=torch.float64)}, "prefix.k is torch.float64 on cpu, k torch.float32"),
        ({"v": torch.ones(1, 1, 2, 8)}, r"prefix\.v is of shape \(1, 1, 2, 8\)"),
        ({"v": torch.ones(1, 1, 3, 8, requires_grad=True)}, "prefix.v requires a gradient"),
        ({"k": [1.0]}, "prefix.k is of type list"),
        ({"lens": 3}, "prefix.lens is 3"),
    ],
)
def test_a_bad_prefix_is_refused_by_a_single_rank(change, words):
    q, good = torch.ones(1, 1, 5, 8), torch.ones(1, 1, 3, 8)
    prefix = hr.Prefix(**({"k": good, "v": good, "lens": (3,)} | change))
    with pytest.raises(ValueError, match=words):
        hr.ring_attention(q, q, q, Partition.zigzag((5,)), prefix=prefix)
