"""Rebalanced prefill over gloo ranks: the logits of one process, whatever the splits of the chunks."""

import os
import re
import time

import pytest
import torch

pytest.importorskip("fms")

import fms_models
import heteroring.fms
from heteroring import Rebalancer
from heteroring.fms import ring_decode_step, ring_extend, ring_generate, ring_prefill
from heteroring.kernels.backend import resolve
from heteroring.ring import busy, consistency
from heteroring.ring.partition import Partition
from oracle import assert_same_logits
from ranks import RankError

IDS = fms_models.prompt(120, batch=2)
# Seconds of each rank by chunk, in place of those measured: rank 1 falls to a quarter of its speed, and returns.
SLOW, FAST = 4.0, 1.0


class Told(Rebalancer):
    """Observes given times instead of measured ones, and records its splits."""

    def __init__(self, speeds, token_seconds):
        super().__init__(speeds)
        self.token_seconds, self.splits = list(token_seconds), []

    def observe(self, partition, seconds):
        assert len(seconds) == partition.world_size
        self.splits.append(partition.block_lens)
        told = [length * cost for length, cost in zip(partition.block_lens, self.token_seconds.pop(0), strict=True)]
        super().observe(partition, told)


def logits_of_one(tokens):
    with torch.no_grad():
        return fms_models.stock("llama3")(IDS[:, :tokens])


def conversation(rank, world_size):
    """90 tokens in chunks of 16, one decoded, and 29 more in chunks of 10, while the last rank slows and recovers."""
    model = fms_models.ring("llama3")
    speeds = [[FAST] * (world_size - 1) + [slow] for slow in (FAST, SLOW, SLOW, SLOW, FAST, FAST, FAST, SLOW, SLOW)]
    told = Told((1,) * world_size, speeds)
    prefilled, cache = ring_prefill(model, IDS[:, :90], chunk=16, capacity=1, rebalance=told)
    assert cache.held == tuple(map(sum, zip(*told.splits, strict=True))) == cache.partition.block_lens
    decoded = ring_decode_step(model, IDS[:, 90], cache)
    extended = ring_extend(model, IDS[:, 91:], cache, chunk=10, capacity=1, rebalance=told)
    last = ring_decode_step(model, IDS[:, 0], cache)
    assert all(held <= room for held, room in zip(cache.held, cache.capacities, strict=True))
    return (prefilled, decoded, extended), last, told.splits


@pytest.mark.parametrize("world_size", [2, 3])
def test_logits_are_those_of_one_process_however_the_split_changes(ranks, world_size):
    want = logits_of_one(120)
    results = ranks(world_size).run(conversation)
    splits = results[0][2]
    shares = [lens[-1] / sum(lens) for lens in splits]
    assert shares[2] < shares[0] / 2 < shares[6] / 1.5  # the slow chunks begin with the second, and end with the fifth
    for found, last, others in results:
        assert others == splits
        torch.testing.assert_close(last, results[0][1])
        for logits, tokens in zip(found, (90, 91, 120), strict=True):
            assert_same_logits(logits, want[:, tokens - 1])


def measured(rank, world_size):
    """A rank whose attention takes four times as long per query, from the third chunk on."""
    model, compute, observed = fms_models.ring("llama3"), resolve("auto", torch.device("cpu")), []

    def block(q, k, v, **keywords):
        slow = rank == 1 and len(observed) >= 2
        if keywords.get("running") is None:
            time.sleep(q.shape[2] * (0.004 if slow else 0.001))
        return compute(q, k, v, **keywords)

    class Noted(Rebalancer):
        def observe(self, partition, seconds):
            observed.append((partition.block_lens, seconds))
            super().observe(partition, seconds)

    logits, _ = ring_prefill(model, IDS, chunk=20, rebalance=Noted((1, 1)), block=block)
    return logits, observed


def test_tokens_move_to_the_rank_that_was_measured_to_be_faster(ranks):
    (logits, observed), (_, same) = ranks(2).run(measured)
    assert same == observed
    assert_same_logits(logits, logits_of_one(120)[:, -1])
    (lens, seconds), (after, _) = observed[2], observed[3]
    assert seconds[1] / lens[1] > 2.5 * seconds[0] / lens[0]  # the faster one's waiting is not counted
    assert after[1] <= lens[1] * 0.7


def exchanged(rank, world_size):
    """The bytes that this rank sends to the others, and its backend calls in between, in a rebalanced prefill.

    Calls are compared as on CUDA, once per kind; the kind that all chunks share was compared in another prefill.
    """
    model, compute, told = fms_models.ring("llama3"), resolve("auto", torch.device("cpu")), []

    def block(*args, **keywords):
        if told[-1] != "blocks":
            told.append("blocks")
        return compute(*args, **keywords)

    def all_bytes(mine, group, device):
        told.append(len(mine))
        return asked(mine, group, device)

    asked, compared_always = consistency.all_bytes, consistency.Call._always
    for module in (busy, consistency):
        module.all_bytes = all_bytes
    consistency.Call._always = lambda call: False
    try:
        for chunk in (60, 24):
            told.clear()
            ring_prefill(model, IDS, chunk=chunk, rebalance=Told((1, 1), [(FAST, FAST)] * 5), block=block)
    finally:
        consistency.Call._always = compared_always
        for module in (busy, consistency):
            module.all_bytes = asked
    return told


def test_a_chunk_is_agreed_on_once_and_its_busy_times_told_once(ranks):
    """A 16-byte digest before its first layer, and an 8-byte time after its last; no other layer waits for a host."""
    for told in ranks(2).run(exchanged):
        assert told == [16, *[16, "blocks", 8] * 5]


def generated(rank, world_size):
    model = fms_models.ring("llama3")
    return ring_generate(model, IDS[:1, :40], max_new_tokens=6, chunk=8, rebalance=True)


def test_generation_passes_it_on(ranks):
    with torch.no_grad():
        ids = IDS[:1, :40]
        for _ in range(6):
            ids = torch.cat((ids, fms_models.stock("llama3")(ids)[:, -1:].argmax(-1)), 1)
    for found in ranks(2).run(generated):
        assert found.tolist() == ids.tolist()


def resumed(rank, world_size):
    """The third chunk fails on rank 1. The cache stays usable: the rest is prefilled behind it."""
    model, compute, calls = fms_models.ring("llama3"), resolve("auto", torch.device("cpu")), []
    told = Told((1, 1), [(FAST, FAST), (FAST, SLOW), (FAST, SLOW), (FAST, FAST), (FAST, FAST)])

    def block(*args, **keywords):
        if rank == 1 and len(told.splits) == 2 and not calls:
            calls.append("failed")
            raise RuntimeError("a GPU fell off the bus")
        return compute(*args, **keywords)

    _, cache = ring_prefill(model, IDS[:, :20], block=block)
    words = []
    try:
        ring_extend(model, IDS[:, 20:70], cache, chunk=10, rebalance=told)
    except ValueError as error:
        words.append(str(error))
    held = cache.seq_len
    return words, held, ring_extend(model, IDS[:, held:70], cache, chunk=10, rebalance=told)


def test_after_a_chunk_that_fails_the_rest_follows_the_finished_ones(ranks):
    want = logits_of_one(70)[:, -1]
    for words, held, logits in ranks(2).run(resumed):
        assert re.search("a GPU fell off the bus", *words)
        assert held == 40
        assert_same_logits(logits, want)


def left_alone(rank, world_size):
    """Rank 1 dies between two chunks: the error of the others, and how long it takes."""
    model = fms_models.ring("llama3")

    class Dies(Rebalancer):
        def observe(self, partition, seconds):
            if rank == 1:
                os._exit(0)

    begun, words = time.monotonic(), []
    for _ in range(2):
        try:
            ring_prefill(model, IDS, chunk=20, rebalance=Dies((1, 1, 1)))
        except RuntimeError as error:
            words.append(str(error))
    return words, time.monotonic() - begun


def test_a_rank_that_dies_between_chunks_is_an_error_on_the_others(fresh_ranks):
    first, died, last = fresh_ranks(3).attempt(left_alone, dying=1)
    assert died is None
    for rank, (words, seconds) in ((0, first), (2, last)):
        assert len(words) == 2
        assert words[0].startswith(f"rank {rank} lost ")
        assert re.search("ended half way", words[1])
        assert seconds < 30


def refused(rank, world_size, verb, keywords):
    model = fms_models.ring("llama3")
    if verb == "ring_prefill":
        return ring_prefill(model, IDS[:, :41], **keywords[rank])
    _, cache = ring_prefill(model, IDS[:, :41], Partition.zigzag((41, 0)))
    return getattr(heteroring.fms, verb)(model, IDS[:, 41:50], cache, **keywords[rank])


@pytest.mark.parametrize(
    ("verb", "first", "second", "words"),
    [
        ("ring_prefill", {"rebalance": True}, {}, "rebalance needs a chunk: a prompt in one piece is split once"),
        (
            "ring_prefill",
            {"rebalance": 1, "chunk": 9},
            {"chunk": 9},
            "rebalance is 1: it must be True, False or a",
        ),
        ("ring_prefill", {"rebalance": True, "chunk": 9}, {"chunk": 9}, "ranks disagree on rebalance"),
        ("ring_prefill", {"rebalance": True, "chunk": 0}, {}, "chunk is 0: a chunk has 1 token or more"),
        (
            "ring_prefill",
            {"rebalance": Rebalancer((1, 1)), "chunk": 9, "partition": Partition.zigzag((30, 11))},
            {},
            "a Rebalancer makes the partitions: give either a Rebalancer or a partition",
        ),
        ("ring_prefill", {"rebalance": Rebalancer((1, 1, 1)), "chunk": 9}, {}, "of 3 ranks, the group has 2"),
        (
            "ring_prefill",
            {"rebalance": True, "chunk": 9, "partition": Partition.contiguous((30, 11))},
            {},
            r"rebalance begins with a zigzag in which every rank has tokens, not with contiguous \(30, 11\)",
        ),
        ("ring_extend", {"rebalance": True, "chunk": 4}, {}, "every rank has tokens, not with zigzag"),
        ("ring_extend", {"rebalance": None, "chunk": 4}, {}, "rebalance is None"),
    ],
)
def test_what_cannot_be_rebalanced_is_an_error_on_every_rank(ranks, verb, first, second, words):
    for result in ranks(2).attempt(refused, verb, [first, second]):
        assert isinstance(result, RankError)
        assert re.search(words, result.text)
