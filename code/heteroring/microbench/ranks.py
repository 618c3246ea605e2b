"""Shared code of microbenchmarks of a ring: their options and ranks, their timer, and the splits they measure."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import torch.distributed as dist

from heteroring.allocators.apportion import apportion
from heteroring.allocators.even import even
from heteroring.bench.base_job import MULTIPLES
from heteroring.bench.shape import Shape
from heteroring.bench.timing import Busy, no_garbage_collection, timed
from heteroring.launch.heartbeat import advance
from heteroring.launch.launch import Rank, check_ranks, launch
from heteroring.microbench.options import count, counts

Line = TypeVar("Line")
Result = TypeVar("Result")


def ranks_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options of every microbenchmark over ranks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default="gpu")
    parser.add_argument("--percentages", type=counts, default=(100, 100))
    parser.add_argument("--repetitions", type=count, default=7)
    return parser


def ring_parser(description: str | None, kv_heads: int) -> argparse.ArgumentParser:
    """A parser of ranks, throttle, shape and repetitions. kv_heads: the default number of KV heads."""
    parser = ranks_parser(description)
    parser.add_argument("--throttle", default="none")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=kv_heads)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    return parser


def measured(
    measure: Callable[..., list[Line]], parser: argparse.ArgumentParser, options: argparse.Namespace, *what: object
) -> list[Line]:
    """Run `measure(rank, *what, shape, multiple, repetitions)` on the ranks of the options; return rank 0's result.

    Exits with a message of `parser` if that cannot be measured.
    """
    try:
        shape = Shape(1, options.heads, options.kv_heads, options.head_dim, options.dtype)
    except ValueError as error:
        parser.error(str(error))
    multiple = MULTIPLES.get(options.platform)
    return launched(measure, parser, options, *what, shape, multiple, options.repetitions, throttle=options.throttle)


def launched(
    measure: Callable[..., Result],
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    *what: object,
    throttle: str = "none",
) -> Result:
    """Run `measure(rank, *what)` on the ranks of the options; return rank 0's result, or exit as `measured` does."""
    ranks = {"device_kind": options.platform, "throttle": throttle, "percentages": options.percentages}
    try:
        check_ranks(**ranks)
        return launch(measure, *what, **ranks)[0]
    except ValueError as error:
        parser.error(str(error))


def slowest_ms(rank: Rank, repetitions: int, call: Callable[[], object] | None) -> float:
    """Median time of the slowest rank.

    Args:
        rank: This rank.
        repetitions: Timed calls, after a warm-up.
        call: The call; None if this rank idles.

    Returns:
        Milliseconds, the same on every rank.
    """
    busy, mine = Busy(rank.device), []
    with no_garbage_collection():
        for _ in range(1 + repetitions):
            mine.append(timed(call or (lambda: None), busy, rank.device).latency_ms)
            advance()
    return slowest(rank, mine[1:])


def slowest(rank: Rank, mine: list[float]) -> float:
    """Median over calls of the slowest rank's time, from the times of this rank; every rank must call."""
    everyone: list = [None] * rank.world_size
    dist.all_gather_object(everyone, mine)
    return median(map(max, zip(*everyone, strict=True)))


def alone_ms(rank: Rank, repetitions: int, call: Callable[[], object]) -> list[float]:
    """Milliseconds of `call` on each rank while the others do nothing."""
    return [slowest_ms(rank, repetitions, call if rank.rank == each else None) for each in range(rank.world_size)]


def splits(tokens: int, alone: list[float], multiple: int) -> dict[str, tuple[int, ...]]:
    """Even lengths, and lengths in proportion to speed, of which a remainder goes to the first rank.

    Args:
        tokens: Tokens to split.
        alone: The time of each rank for all tokens.
        multiple: Tokens that are given out at a time.

    Returns:
        Tokens per rank, by name of the split.
    """
    units = apportion([1 / each for each in alone], tokens // multiple)
    first, *others = (multiple * each for each in units)
    return {"even": even(tokens, len(alone)), "proportional": (first + tokens % multiple, *others)}
