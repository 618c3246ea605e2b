"""Shared code of microbenchmarks on one GPU: their timer, and parsing and checks of options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from heteroring.words import listed

QUEUE_CYCLES = 200_000  # clock cycles, some 2 per nanosecond: longer than the host takes to launch one call


def elapsed_ms(calls: Sequence[Callable[[], object]], *, queued: bool = False) -> float:
    """Milliseconds of one of `calls`, made one after another, by events on the device: the mean.

    queued: the device sleeps until the host has launched all of them, so that launching takes no part of the time.
    Where calls are long enough to hide launches, a sleep would only let a GPU at its power limit rest.
    """
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if queued:
        torch.cuda._sleep(QUEUE_CYCLES * (1 + len(calls)))
    start.record()
    for call in calls:
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / len(calls)


def count(text: str) -> int:
    """Parse an integer of 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def indices(text: str) -> list[int]:
    """Parse integers of 0 or more, separated by commas or spaces."""
    found = list(map(int, listed("list", text)))
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"{min(found)} is below 0")
    return found


def counts(text: str) -> list[int]:
    """Parse integers of 1 or more, separated by commas or spaces."""
    return [count(part) for part in listed("list", text)]


def check_gpu(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with a message if heads is no multiple of KV heads, or if there is no GPU."""
    if options.heads % options.kv_heads:
        parser.error(f"--heads {options.heads} is not a multiple of --kv-heads {options.kv_heads}")
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to measure")
