"""Pass-Q decode over gloo ranks against fp64 over all keys, the work of each rank, and errors."""

import re

import pytest
import torch

import heteroring as hr
from heteroring.kernels.backend import resolve
from heteroring.ring import decode
from oracle import assert_as_accurate_as_torch, attention64
from ranks import RankError

SHARDS = {
    1: [(1,), (63,)],
    2: [(33, 31), (59, 5), (111, 0), (0, 1)],
    3: [(21, 22, 21), (40, 0, 23), (0, 0, 7)],
}
CASES = [(world, lens) for world, choices in SHARDS.items() for lens in choices]


def whole(tokens, heads=4, kv_heads=2, dtype=torch.float32, batch=2, head_dim=16, seed=0):
    """q of one token, k and v of all: the same on every rank for a seed."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((heads, 1), (kv_heads, tokens), (kv_heads, tokens))
    return tuple(torch.randn(batch, h, n, head_dim, generator=g).to(dtype) for h, n in shapes)


def decoded(rank, world_size, lens, heads, kv_heads, dtype, seed, block="auto"):
    """The result, the shapes that the block was called with, and the bytes that the rank sent to be gathered."""
    q, k, v = whole(sum(lens), heads, kv_heads, dtype, seed=seed)
    mine = slice(sum(lens[:rank]), sum(lens[: rank + 1]))
    # As from a cache: views of longer tensors, of which the rest must not be read.
    k, v = (torch.cat((x[:, :, mine], x.new_full((2, kv_heads, 3, 16), torch.nan)), 2)[:, :, :-3] for x in (k, v))
    shapes, sent = [], []
    compute, gather = resolve("auto", q.device), decode._all_gather

    def recording(q, k, v, **keywords):
        shapes.append((tuple(q.shape), tuple(k.shape)))
        return compute(q, k, v, **keywords)

    def counting(parts, part, group):
        sent.append(part.nbytes)
        return gather(parts, part, group=group)

    decode._all_gather = counting
    try:
        out = hr.ring_decode(q, k, v, block=recording if block == "recording" else block)
    finally:
        decode._all_gather = gather
    return out, shapes, sent


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("world_size", "lens"), CASES, ids=lambda x: str(x).replace(" ", ""))
def test_as_accurate_as_torch_over_all_keys_and_the_same_on_every_rank(ranks, heads, kv_heads, dtype, world_size, lens):
    seed = torch.seed() % 2**31
    outs = [result[0] for result in ranks(world_size).run(decoded, lens, heads, kv_heads, dtype, seed)]
    q, k, v = whole(sum(lens), heads, kv_heads, dtype, seed=seed)
    assert_as_accurate_as_torch(outs[0], None, q, k, v)
    for out in outs:
        assert out.dtype == dtype
        assert out.is_contiguous()
        assert torch.equal(out, outs[0])


@pytest.mark.parametrize("lens", [(33, 31), (59, 0)], ids=str)
def test_a_rank_reads_its_own_keys_once_and_sends_one_small_part(ranks, lens):
    for rank, (_, shapes, sent) in enumerate(ranks(2).run(decoded, lens, 4, 2, torch.bfloat16, 0, "recording")):
        assert shapes == [((2, 2, 2, 16), (2, 2, lens[rank], 16))]
        assert sent == [2 * 4 * (16 + 1) * 4]


def test_the_kernel_decodes_over_ranks(ranks):
    """In Triton's interpreter; that of 3.6 fails with the NumPy of today."""
    pytest.importorskip("triton", minversion="3.7")
    q, k, v = whole(64, 4, 2, seed=3)
    for out in ranks(2).run(interpreted, (59, 5)):
        assert_as_accurate_as_torch(out, None, q, k, v)


def interpreted(rank, world_size, lens):
    return decoded(rank, world_size, lens, 4, 2, torch.float32, 3, "triton")[0]


def test_a_query_that_sees_no_key_gives_nothing(ranks):
    for out, _, _ in ranks(2).run(decoded, (0, 0), 4, 2, torch.float32, 0):
        assert torch.equal(out, torch.zeros(2, 4, 1, 16))


def in_fp64(rank, world_size):
    q, k, v = whole(40, dtype=torch.float64)
    mine = slice(0, 31) if rank == 0 else slice(31, 40)
    return hr.ring_decode(q, k[:, :, mine], v[:, :, mine], scale=0.7)


def test_fp64_stays_fp64_and_the_scale_is_used(ranks):
    q, k, v = whole(40, dtype=torch.float64)
    want, _ = attention64(q, k, v, scale=0.7)
    for out in ranks(2).run(in_fp64):
        torch.testing.assert_close(out, want, atol=1e-12, rtol=1e-12)


def subgroup(rank, world_size):
    group = torch.distributed.new_group([0, 2])
    if rank not in (0, 2):
        with pytest.raises(ValueError, match="not a member of the group"):
            hr.ring_decode(*whole(20), group=group)
        return None
    q, k, v = whole(20)
    mine = slice(0, 14) if rank == 0 else slice(14, 20)
    return hr.ring_decode(q, k[:, :, mine], v[:, :, mine], group=group)


def test_ranks_of_a_subgroup_decode_without_the_others(ranks):
    first, outside, second = ranks(3).run(subgroup)
    assert outside is None
    assert torch.equal(first, second)
    assert_as_accurate_as_torch(first, None, *whole(20))


def call(rank, world_size, per_rank):
    shape, keywords = per_rank[rank]
    q, k, v = whole(**{"tokens": 5 + rank, **shape})
    return hr.ring_decode(q, k, v, **keywords).shape


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (({"dtype": torch.bfloat16}, {}), "ranks disagree on dtype"),
        (({"heads": 8}, {}), "ranks disagree on query heads: rank 0 has 4, rank 1 has 8"),
        (({"kv_heads": 4}, {}), "ranks disagree on KV heads"),
        (({"head_dim": 8}, {}), "ranks disagree on head dimension"),
        (({"batch": 1}, {}), "ranks disagree on batch"),
        (({}, {"scale": 0.5}), "ranks disagree on scale"),
        (({"heads": 3}, {}), "q has 3 heads and k has 2: the first must be a multiple"),
        (({}, {"scale": float("inf")}), "scale is inf: it must be finite"),
        (({}, {"block": "cuda"}), "backend 'cuda' is unknown"),
    ],
    ids=["dtype", "heads", "kv_heads", "head_dim", "batch", "scale", "multiple", "finite", "block"],
)
def test_what_does_not_fit_is_an_error_on_every_rank(ranks, other, words):
    for result in ranks(2).attempt(call, [({}, {}), other]):
        assert isinstance(result, RankError)
        assert result.kind == "Disagreement"
        assert re.search(words, result.text)
    assert ranks(2).run(call, [({}, {}), ({}, {})]) == [(2, 4, 1, 16)] * 2


def test_a_rank_that_prefills_while_another_decodes_is_caught(ranks):
    for result in ranks(2).attempt(mixed):
        assert result.kind == "Disagreement"


def mixed(rank, world_size):
    q, k, v = whole(1)
    if rank:
        return hr.ring_decode(q, k, v)
    return hr.ring_attention(q, k, v, hr.Partition.zigzag((1, 1)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"q": torch.ones(2, 4, 16)}, r"each must be \[B, H, n, D\]"),
        ({"q": torch.ones(2, 4, 2, 16)}, "decode takes one query, q has 2"),
        ({"v": torch.ones(2, 2, 4, 16)}, "k and v must have one shape"),
        ({"q": torch.ones(1, 4, 1, 16)}, "q their batch"),
        ({"v": torch.ones(2, 2, 5, 16, dtype=torch.float64)}, "one floating-point dtype"),
        ({"q": torch.ones(2, 4, 1, 16, requires_grad=True)}, "forward only"),
        ({"block": "cuda"}, "backend 'cuda' is unknown"),
    ],
)
def test_bad_arguments_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        hr.ring_decode(**(dict(zip("qkv", whole(5), strict=True)) | changes))


def deserted(rank, world_size):
    """Rank 1 leaves after the first token."""
    q, k, v = whole(5)
    hr.ring_decode(q, k, v)
    if rank:
        torch.distributed.destroy_process_group()
        return None
    return hr.ring_decode(q, k, v)


def test_a_rank_that_is_lost_is_an_error_on_the_others(fresh_ranks):
    left, _ = fresh_ranks(2, 20.0).attempt(deserted)
    assert isinstance(left, RankError)
    assert re.search("RuntimeError|DistBackendError|DistError", left.kind)
