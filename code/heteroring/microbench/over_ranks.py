"""What microbenchmarks of a ring share: their timer, the splits they measure, and how they read lists of integers."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch.distributed as dist

from heteroring.bench.timing import Busy, no_garbage_collection, timed
from heteroring.launch.heartbeat import advance
from heteroring.launch.launch import Rank


def slowest_ms(rank: Rank, repetitions: int, call: Callable[[], object] | None) -> float:
    """Median over `repetitions`, after one more, of the slowest rank's milliseconds; None: this rank does nothing."""
    busy, mine = Busy(rank.device), []
    with no_garbage_collection():
        for _ in range(1 + repetitions):
            mine.append(timed(call or (lambda: None), busy, rank.device).latency_ms)
            advance()
    everyone: list = [None] * rank.world_size
    dist.all_gather_object(everyone, mine[1:])
    return median(map(max, zip(*everyone, strict=True)))


def splits(tokens: int, alone: list[float], multiple: int) -> dict[str, tuple[int, ...]]:
    """Even lengths, and lengths in proportion to speed in whole multiples; a remainder goes to the first rank.

    alone: the time of each rank for all tokens.
    """
    ranks = len(alone)
    speeds = [1 / each for each in alone]
    shares = [round(tokens * speed / sum(speeds) / multiple) * multiple for speed in speeds[1:]]
    even = [tokens // ranks] * (ranks - 1)
    return {name: (tokens - sum(rest), *rest) for name, rest in (("even", even), ("balanced", shares))}


def integers(text: str) -> tuple[int, ...]:
    """Parse integers separated by commas."""
    return tuple(int(part) for part in text.split(","))
