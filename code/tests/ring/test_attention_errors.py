"""Bad arguments and ranks that disagree are errors on every rank, at once."""

import re

import pytest
import torch

import heteroring as hr
from heteroring.ring.partition import Partition
from ranks import RankError


def tensors(tokens, heads=4, kv_heads=2, head_dim=8, dtype=torch.float32, batch=1):
    return tuple(torch.ones(batch, h, tokens, head_dim, dtype=dtype) for h in (heads, kv_heads, kv_heads))


def call(rank, world_size, per_rank):
    """Each rank calls with arguments of its own: (layout, block_lens, keywords of tensors, keywords of the call)."""
    layout, lens, shape, keywords = per_rank[rank]
    q, k, v = tensors(**{"tokens": lens[rank] if rank < len(lens) else 1, **shape})
    return hr.ring_attention(q, k, v, Partition(layout, lens), **keywords)[0].shape


SAME = ("zigzag", (6, 4), {}, {})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            ("zigzag", (6, 5), {}, {}),
            r"ranks disagree on block_lens: rank 0 has \(6, 4\), rank 1 has \(6, 5\)",
        ),
        (
            ("contiguous", (6, 4), {}, {}),
            "ranks disagree on layout: rank 0 has zigzag, rank 1 has contiguous",
        ),
        (("zigzag", (6, 4), {"dtype": torch.bfloat16}, {}), "ranks disagree on dtype"),
        (("zigzag", (6, 4), {"heads": 8}, {}), "ranks disagree on query heads: rank 0 has 4, rank 1 has 8"),
        (("zigzag", (6, 4), {"kv_heads": 4}, {}), "ranks disagree on KV heads"),
        (("zigzag", (6, 4), {"head_dim": 16}, {}), "ranks disagree on head dimension"),
        (("zigzag", (6, 4), {"batch": 2}, {}), "ranks disagree on batch"),
        (
            ("zigzag", (6, 4), {}, {"causal": False}),
            "ranks disagree on causal: rank 0 has True, rank 1 has False",
        ),
        (("zigzag", (6, 4), {}, {"scale": 0.5}), "ranks disagree on scale"),
    ],
    ids=["block_lens", "layout", "dtype", "heads", "kv_heads", "head_dim", "batch", "causal", "scale"],
)
def test_a_disagreement_is_an_error_on_every_rank(ranks, other, words):
    results = ranks(2).attempt(call, [SAME, other])
    for result in results:
        assert isinstance(result, RankError)
        assert result.kind == "Disagreement"
        assert re.search(words, result.text)
    assert ranks(2).run(call, [SAME, SAME]) == [(1, 4, 6, 8), (1, 4, 4, 8)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (("zigzag", (6, 4), {"tokens": 5}, {}), "rank 1 of block_lens .6, 4. must hold 4 tokens"),
        (("zigzag", (6, 2, 2), {}, {}), "the partition has 3 ranks .* the group has 2"),
        (("zigzag", (6, 4), {"heads": 3}, {}), "q has 3 heads and k has 2: the first must be a multiple"),
        (("zigzag", (6, 4), {"dtype": torch.int32}, {}), "one floating-point dtype"),
        (("zigzag", (6, 4), {}, {"scale": float("nan")}), "scale is nan: it must be finite"),
        (("zigzag", (6, 4), {}, {"block": "cuda"}), "backend 'cuda' is unknown"),
        (("zigzag", (6, 4), {}, {"transport": "pigeon"}), "transport 'pigeon' is unknown"),
        (("zigzag", (6, 4), {}, {"passing": "keys"}), "passing is 'keys': choose auto or one of kv, q"),
        (("zigzag", (6, 4), {}, {"block": "cudnn"}), "backend 'cudnn' computes on cuda, not on cpu"),
        (
            ("zigzag", (6, 4), {"head_dim": 320}, {"block": "triton"}),
            "computes on cuda, not on cpu|head_dim is 320, but must",
        ),
    ],
    ids=["tokens", "ranks", "heads", "dtype", "scale", "block", "transport", "passing", "elsewhere", "head_dim"],
)
def test_one_rank_with_bad_arguments_stops_all_of_them(ranks, bad, words):
    good, other = ranks(2).attempt(call, [("zigzag", (7, 4), {}, {}), bad])
    assert good.kind == other.kind == "Disagreement"
    assert re.search("rank 1: .*" + words, good.text)
    assert re.search(words, other.text)


@pytest.mark.parametrize("also", [0, 1])
def test_a_rank_that_leaves_an_agreed_call_for_another_is_caught(ranks, also):
    other = ("contiguous", (6, 4), {}, {})
    for agreed in (SAME, other)[: also + 1]:
        ranks(2).run(call, [agreed, agreed])
    for result in ranks(2).attempt(call, [SAME, other]):
        assert result.kind == "Disagreement"
        assert "rank 0 has zigzag, rank 1 has contiguous" in result.text


def many(rank, world_size):
    return call(rank, world_size, [("zigzag", (1,) * 300 if rank else (2, *(1,) * 299), {}, {})] * 2)


def test_a_partition_of_hundreds_of_ranks_fits_the_message(ranks):
    for result in ranks(2).attempt(many):
        assert "the partition has 300 ranks" in result.text


NO_HEADS = torch.ones(1, 0, 5, 8)


def bad_single(**changes):
    arguments = dict(zip("qkv", tensors(5), strict=True)) | changes
    return hr.ring_attention(**arguments, partition=Partition.zigzag((5,)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"q": torch.ones(())}, r"each must be \[B, H, n, D\]"),
        ({"q": torch.ones(5, 8)}, r"each must be \[B, H, n, D\]"),
        ({"k": torch.ones(1, 2, 4, 8)}, "k and v must have one shape"),
        ({"q": torch.ones(2, 4, 5, 8)}, "q their batch"),
        ({"v": torch.ones(1, 2, 5, 8, dtype=torch.float64)}, "one floating-point dtype"),
        ({"v": torch.ones(1, 2, 5, 8, device="meta")}, "they must be on one device"),
        ({"k": NO_HEADS, "v": NO_HEADS}, "q has 4 heads and k has 0: the first must be a multiple"),
        ({"q": NO_HEADS}, "q has 0 heads and k has 2: the first must be a multiple"),
        (dict.fromkeys("qkv", torch.ones(0, 2, 5, 8)), "batch and head dimension must be at least 1"),
        (dict.fromkeys("qkv", torch.ones(1, 2, 5, 0)), "batch and head dimension must be at least 1"),
        ({"q": torch.ones(1, 4, 5, 8, requires_grad=True)}, "forward only"),
        ({"block": "cuda"}, "backend 'cuda' is unknown"),
        ({"transport": "pigeon"}, "transport 'pigeon' is unknown"),
        ({"q": None}, "q is of type NoneType: it must be a tensor"),
        ({"k": torch.ones(1, 2, 5, 8).numpy()}, "k is of type ndarray: it must be a tensor"),
        (dict.fromkeys("qkv", torch.ones(1, 2, 5, 8, device="meta")), "q is on meta: there are kernels for cpu and"),
        ({"v": torch.ones(1, 2, 5, 8).to_sparse()}, "v is torch.sparse_coo: it must be a dense, strided tensor"),
        (
            dict.fromkeys("qkv", torch.ones(1, 2, 5, 8).to(torch.float8_e4m3fn)),
            "q is torch.float8_e4m3fn, .* one floating-point dtype of 16, 32 or 64 bits",
        ),
        ({"causal": 1}, "causal is 1: it must be True or False"),
        ({"causal": "no"}, "causal is 'no': it must be True or False"),
        ({"scale": "x"}, "scale is 'x': it must be a real number"),
        ({"scale": True}, "scale is True: it must be a real number"),
        ({"scale": torch.tensor(0.5)}, "scale is tensor.0.5000.: it must be a real number"),
        ({"group": 0}, "group is 0: it must be a ProcessGroup, or None for all processes"),
    ],
)
def test_bad_arguments_are_refused(changes, words):
    for scale in (None, 1.0):  # calls that are like the bad one, but right: what has passed is not checked again
        bad_single(scale=scale)
    with pytest.raises(ValueError, match=words):
        bad_single(**changes)


def test_only_work_on_cuda_can_be_captured():
    with pytest.raises(ValueError, match="only work on CUDA can be captured, q is on cpu"):
        hr.CapturedRing(*tensors(3), Partition.zigzag((3,)))


def test_what_is_no_partition_is_refused():
    with pytest.raises(ValueError, match=r"partition is \(3, 2\): it must be a Partition"):
        hr.ring_attention(*tensors(5), (3, 2))


def test_a_partition_for_more_ranks_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"the partition has 2 ranks \(.*\), the group has 1"):
        hr.ring_attention(*tensors(3), Partition.zigzag((3, 3)))
