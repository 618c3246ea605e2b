"""Prompts in chunks, and further tokens behind a cache, over gloo ranks: the logits of stock FMS in one process."""

import re

import pytest
import torch

pytest.importorskip("fms")

import fms_models
import heteroring.fms
from heteroring.fms import ring_decode_step, ring_extend, ring_prefill
from heteroring.kernels.backend import resolve
from heteroring.ring.partition import Partition
from oracle import assert_same_logits
from ranks import RankError

SHARES = [
    ("zigzag", (41,)),
    ("contiguous", (30, 11)),
    ("zigzag", (0, 41)),
    ("contiguous", (20, 0, 21)),
    ("zigzag", (1, 20, 8, 12)),
]
IDS = fms_models.prompt(60, batch=2)


def logits_of_one(name, tokens=60):
    with torch.no_grad():
        return fms_models.stock(name)(IDS[:, :tokens])


def conversation(rank, world_size, name, layout, lens, chunk):
    """A prompt of 41 tokens in chunks; one token decoded; 17 more in chunks by shares of their own, and the last one.

    Returns the logits behind 41, 42, 59 and 60 tokens, those of the 17, and the most rows of this rank in any pass.
    """
    model, rows = fms_models.ring(name), []
    first = model.base_model.layers[0].attn.in_proj
    first.register_forward_pre_hook(lambda _, x: rows.append(x[0].shape[1]))
    own = None if world_size == 1 else Partition(layout, (0,) * (world_size - 2) + (6, 11))
    prefilled, cache = ring_prefill(model, IDS[:, :41], Partition(layout, lens), capacity=1, chunk=chunk)
    decoded = ring_decode_step(model, IDS[:, 41], cache)
    extended = ring_extend(model, IDS[:, 42:59], cache, own, capacity=1, all_logits=True, chunk=chunk)
    last = ring_extend(model, IDS[:, 59:], cache)
    assert cache.seq_len == 60
    return (prefilled, decoded, extended[:, -1], last), extended, max(rows, default=0)


@pytest.mark.parametrize(("layout", "lens"), SHARES, ids=str)
def test_chunks_give_the_same_logits_with_bounded_activations(ranks, layout, lens):
    want = logits_of_one("llama3")
    for rank, (found, extended, rows) in enumerate(ranks(len(lens)).run(conversation, "llama3", layout, lens, 9)):
        for logits, tokens in zip(found, (41, 42, 59, 60), strict=True):
            assert_same_logits(logits, want[:, tokens - 1])
        assert_same_logits(extended, want[:, 42:59])
        assert rows <= max(9 * lens[rank] / 41 + 1, 9 * 11 / 17 + 1 if len(lens) > 1 else 9)


@pytest.mark.parametrize("name", [name for name in fms_models.TINY if name != "llama3"])
def test_chunks_of_every_architecture(ranks, name):
    want = logits_of_one(name)
    for found, _, _ in ranks(2).run(conversation, name, "zigzag", (30, 11), 20):
        for logits, tokens in zip(found, (41, 42, 59, 60), strict=True):
            assert_same_logits(logits, want[:, tokens - 1])


def short_turn(rank, world_size):
    """Logits behind a long prompt and a turn of 3 tokens, tokens held then, and how often queries or parts went out."""
    model, calls, all_to_all = fms_models.ring("llama3"), [], torch.distributed.all_to_all_single
    _, cache = ring_prefill(model, IDS[:, :57], Partition.zigzag((30, 27)))

    def count(*args, **keywords):
        calls.append(args)
        return all_to_all(*args, **keywords)

    torch.distributed.all_to_all_single = count
    try:
        return ring_extend(model, IDS[:, 57:], cache), cache.held, len(calls)
    finally:
        torch.distributed.all_to_all_single = all_to_all


def test_a_short_turn_behind_a_long_prompt_passes_queries(ranks):
    want = logits_of_one("llama3")[:, -1]
    for logits, held, calls in ranks(2).run(short_turn):
        assert_same_logits(logits, want)
        assert sum(held) == 60
        assert calls == 2 * 2  # two layers, queries and partial results


def resumed(rank, world_size):
    """The third chunk of a prompt fails on rank 1. The cache stays usable: the rest is prefilled behind it."""
    model, compute, calls = fms_models.ring("llama3"), resolve("auto", torch.device("cpu")), []

    def block(*args, **keywords):
        if rank == 1 and len(calls) == 1:
            calls.append("failed")
            raise RuntimeError("a GPU fell off the bus")
        return compute(*args, **keywords)

    _, cache = ring_prefill(model, IDS[:, :21], Partition.zigzag((14, 7)), block=block)
    words = []
    forward = model.base_model.layers[1].attn.register_forward_pre_hook
    hook = forward(lambda *_: calls.append("armed") if cache.seq_len == 31 and not calls else None)
    try:
        ring_extend(model, IDS[:, 21:51], cache, chunk=10)
    except ValueError as error:
        words.append(str(error))
    hook.remove()
    held = cache.seq_len
    return words, held, ring_extend(model, IDS[:, held:51], cache, chunk=10)


def test_a_chunk_that_fails_is_an_error_on_every_rank_and_the_rest_can_follow_the_finished_ones(ranks):
    want = logits_of_one("llama3", 51)[:, -1]
    for words, held, logits in ranks(2).run(resumed):
        assert re.search("a GPU fell off the bus", *words)
        assert held == 31
        assert_same_logits(logits, want)


def refused(rank, world_size, verb, keywords):
    model = fms_models.ring("llama3")
    if verb == "ring_prefill":
        return ring_prefill(model, IDS[:, :41], Partition.zigzag((30, 11)), **keywords[rank])
    _, cache = ring_prefill(model, IDS[:, :41], Partition.zigzag((30, 11)))
    arguments = {"input_ids": IDS[:, 41:50], "cache": cache} | keywords[rank]
    return getattr(heteroring.fms, verb)(model, **arguments)


@pytest.mark.parametrize(
    ("verb", "first", "second", "words"),
    [
        ("ring_prefill", {"chunk": 0}, {}, "chunk is 0: a chunk has 1 token or more"),
        ("ring_prefill", {"chunk": 8}, {"chunk": 9}, "ranks disagree on chunk: rank 0 has 8, rank 1 has 9"),
        ("ring_extend", {"chunk": True}, {}, "chunk is True"),
        ("ring_extend", {"input_ids": IDS[:, 41:49]}, {}, "ranks disagree on new tokens: rank 0 has 8, rank 1 has 9"),
        ("ring_extend", {"input_ids": IDS[:, :0]}, {}, r"input_ids is torch.int64 \(2, 0\): a cache of 2 sequences"),
        ("ring_extend", {"input_ids": IDS[:1]}, {}, r"input_ids is torch.int64 \(1, 60\): a cache of 2 sequences"),
        (
            "ring_extend",
            {"partition": Partition.zigzag((5, 5))},
            {},
            r"\(5, 5\) are of 10 tokens on 2 ranks: there are",
        ),
        ("ring_extend", {"capacity": 150}, {}, "41 tokens cached, 9 further ones and 150 new ones exceed"),
        ("ring_extend", {"cache": None}, {}, "the cache is of type NoneType"),
    ],
)
def test_bad_chunks_and_further_tokens_are_errors_on_every_rank(ranks, verb, first, second, words):
    for result in ranks(2).attempt(refused, verb, [first, second]):
        assert isinstance(result, RankError)
        assert re.search(words, result.text)
