"""Splits that follow the ranks' speeds, in a closed loop with ranks whose speeds change and whose times scatter."""

import math
import random
import re
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heteroring.planning.rebalance import Rebalancer
from heteroring.ring.partition import Partition

TOKENS = 2048
seeds = st.integers(0, 2**32)


def prefill(split, speeds_of, chunks, noise=0.0, seed=0, late=0):
    """The time of each chunk and its block lengths, for ranks at `speeds_of(chunk)`, +- `noise` of each rank's time.

    A chunk is observed only after the next `late` chunks have been split.
    """
    scatter, times, splits, seen = random.Random(seed), [], [], deque()
    for chunk in range(chunks):
        partition = split.partition(TOKENS)
        busy = [
            tokens * TOKENS * (chunk + 0.5) / speed * scatter.uniform(1 - noise, 1 + noise)
            for tokens, speed in zip(partition.block_lens, speeds_of(chunk), strict=True)
        ]
        seen.append((partition, busy))
        if len(seen) > late:
            split.observe(*seen.popleft())
        times.append(max(busy))
        splits.append(partition.block_lens)
    return times, splits


class Oracle:
    """Splits by the true speeds of each chunk."""

    def __init__(self, speeds_of):
        self.speeds_of, self.chunk = speeds_of, 0

    def partition(self, tokens):
        return Rebalancer(self.speeds_of(self.chunk)).partition(tokens)

    def observe(self, partition, seconds):
        self.chunk += 1


class Static(Rebalancer):
    def observe(self, partition, seconds):
        pass


def falls_and_returns(ranks, slow=0.3, first=10, last=21):
    return lambda chunk: (1.0,) * (ranks - 1) + ((slow if first <= chunk < last else 1.0),)


@settings(max_examples=25)
@given(ranks=st.integers(2, 5), noise=st.sampled_from([0.0, 0.01, 0.05]), seed=seeds, late=st.integers(0, 1))
def test_it_is_near_an_oracle_and_adapted_within_two_chunks(ranks, noise, seed, late):
    speeds_of = falls_and_returns(ranks)
    times, splits = prefill(Rebalancer((1,) * ranks), speeds_of, 32, noise, seed, late)
    known, right = prefill(Oracle(speeds_of), speeds_of, 32, noise, seed)
    assert sum(known) / sum(times) >= (0.90, 0.87)[late]
    for chunk in (12, 23):  # two behind each change
        assert splits[chunk][-1] == pytest.approx(right[chunk][-1], rel=0.15)
    assert sum(one != other for one, other in pairwise(splits)) <= 6


@settings(max_examples=25)
@given(ranks=st.integers(2, 5), noise=st.sampled_from([0.005, 0.02, 0.05]), seed=seeds)
def test_noise_moves_no_tokens(ranks, noise, seed):
    speeds = tuple(1 + rank / 2 for rank in range(ranks))
    times, splits = prefill(Rebalancer(speeds), lambda _: speeds, 64, noise, seed)
    static, _ = prefill(Static(speeds), lambda _: speeds, 64, noise, seed)
    assert len(set(splits)) <= 2
    assert sum(times) <= 1.02 * sum(static)


@pytest.mark.parametrize("part", [0.1, 0.2, 0.3])
def test_speeds_that_change_within_a_chunk_are_followed_in_the_next_two(part):
    """`part` of a chunk passes before the change: it shows most of it, but not all."""

    def speeds_of(chunk):
        fast = {4: part, 10: 1 - part}.get(chunk, float(not 4 < chunk < 10))
        return 1, 1 / (fast + (1 - fast) / 0.3)

    times, _ = prefill(Rebalancer((1, 1), multiple=128), speeds_of, 16)
    known, _ = prefill(Oracle(speeds_of), speeds_of, 16)
    assert sum(known) / sum(times) > 0.88


def test_a_gpu_that_slows_down_little_by_little_is_followed():
    def speeds_of(chunk):
        return 607, 607 - (607 - 256) * min(chunk, 24) / 24

    times, _ = prefill(Rebalancer((1, 1)), speeds_of, 32, 0.01)
    known, _ = prefill(Oracle(speeds_of), speeds_of, 32, 0.01)
    static, _ = prefill(Static((1, 1)), speeds_of, 32, 0.01)
    assert sum(known) / sum(times) > 0.94 > 0.8 > sum(known) / sum(static)


def test_a_neighbour_that_leaves_is_forgotten_in_two_chunks():
    """Busy times of two H200s; another process computed on rank 1 in chunks 4 to 9, and in a part of chunk 10."""
    split = Rebalancer((1, 1), multiple=256)
    for tokens, *busy in [
        (2048, 62.6, 63.1),
        (2048, 69.5, 69.4),
        (2048, 76.0, 75.3),
        (2048, 81.1, 81.6),
        (2048, 86.3, 275.7),
        (1024, 138.3, 190.9),
        (768, 162.6, 212.1),
        (768, 175.4, 178.4),
        (768, 189.3, 178.0),
        (768, 199.2, 175.4),
        (768, 217.3, 78.5),
        (1536, 173.3, 97.7),
    ]:
        split.observe(Partition.zigzag((4096 - tokens, tokens)), busy)
    assert split.partition(4096).block_lens == (2048, 2048)


def test_the_noise_is_learned_and_decides_what_is_worth_a_new_split():
    """A speed of 0.85 is followed at once if times scatter little, and may be taken for noise if they scatter much."""

    def chunks_until_followed(noise, seed):
        _, splits = prefill(Rebalancer((1, 1)), lambda chunk: (1, 0.85 if chunk >= 16 else 1), 32, noise, seed)
        return next((chunk - 16 for chunk in range(17, 32) if splits[chunk] != splits[16]), 16)

    assert max(chunks_until_followed(0.002, seed) for seed in range(10)) == 1
    assert max(chunks_until_followed(0.05, seed) for seed in range(10)) > 2


@given(
    speeds=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    tokens=st.integers(1, 20000),
    unit=st.integers(1, 300),
)
def test_every_rank_has_tokens_in_whole_units_but_for_what_is_left_over(speeds, tokens, unit):
    lens = Rebalancer(speeds, multiple=unit).partition(tokens).block_lens
    assert sum(lens) == tokens
    assert (min(lens) > 0) == (tokens >= len(speeds))
    if tokens >= unit * len(speeds):
        assert sum(length % unit > 0 for length in lens) <= 1


def test_a_chunk_in_which_a_rank_did_nothing_tells_nothing():
    split = Rebalancer((1, 1))
    before = split.state
    for lens, seconds in (((10, 10), (1.0, math.nan)), ((10, 10), (1.0, 0.0)), ((10, 0), (1.0, 1.0))):
        split.observe(Partition.zigzag(lens), seconds)
    assert split.state == before


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Rebalancer(()), "speeds is empty: one is needed for each rank"),
        (lambda: Rebalancer((1, 0)), "speed 1 is 0: it must be a positive, finite number"),
        (lambda: Rebalancer((1, math.nan)), "speed 1 is nan"),
        (lambda: Rebalancer((1, 1), multiple=0), "multiple is 0: 1 token or more are given out at a time"),
        (lambda: Rebalancer((1, 1), margin=math.inf), "margin is inf: it must be finite"),
        (lambda: Rebalancer((1, 1)).partition(0), "tokens is 0: a chunk has 1 token or more"),
        (
            lambda: Rebalancer((1, 1)).observe(Partition.zigzag((5, 5)), (1.0,)),
            "seconds of 1 ranks and a partition of 2: this splits over 2",
        ),
        (lambda: Rebalancer((1, 1)).observe(Partition.zigzag((5, 5, 5)), (1.0,) * 3), "partition of 3"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
