"""Timing of calls under each condition, from a common start of all ranks: latency and busy time of each."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from math import ceil
from typing import Any, NamedTuple

import torch

from heteroring.launch.device import Cuda, Device
from heteroring.launch.heartbeat import beat

# Calls back to back, as the layers of a model are: SUSTAINED_CALLS of them, or as many as fit in SUSTAINED_MS, in which
# a GPU settles at the clock that its power limit allows, but never fewer than FEWEST_SUSTAINED_CALLS.
SUSTAINED_CALLS = 32
SUSTAINED_MS = 1000.0
FEWEST_SUSTAINED_CALLS = 4


class Times(NamedTuple):
    """One rank's milliseconds for one call, and those of them that it was busy computing."""

    latency_ms: float
    busy_ms: float


class Busy:
    """Counts the time inside the functions that it wraps, the time that a throttle adds included."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: list[tuple[Any, Any]] = []

    def wrap(self, function: Callable) -> Callable:
        """`function`, whose calls are timed. Functions that are wrapped must not call one another."""

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            beat()
            start = self._device.mark()
            result = function(*args, **kwargs)
            self._marks.append((start, self._device.mark()))
            return result

        return counted

    def forget(self) -> None:
        """Reset the total to zero."""
        self._marks.clear()

    def total_ms(self) -> float:
        """Time inside the functions since `forget`; the device must be synchronized."""
        return sum(self._device.elapsed_ms(start, stop) for start, stop in self._marks)


def timed(call: Callable[[], object], busy: Busy, device: Device, condition: str = "rested", calls: int = 1) -> Times:
    """Time a call on this rank; every rank makes it.

    Args:
        call: The call.
        busy: Counts the time that this rank computes.
        device: This rank's device.
        condition: How calls are timed (`Measurement`).
        calls: How many calls are made in a row.

    Returns:
        Milliseconds of one call on this rank, and those of them that it was busy. The slowest rank's are the latency.
    """
    busy.forget()
    by_host = condition in ("eager", "captured")
    latency_ms = host_ms(call, device) if by_host else elapsed_ms(call, device, calls)
    # Events inside a replayed CUDA graph cannot be read.
    busy_ms = 0.0 if condition == "captured" else busy.total_ms()
    return Times(latency_ms / calls, busy_ms / calls)


def sustained_calls(call_ms: float) -> int:
    """How many calls that take `call_ms` each are made back to back under condition `sustained`."""
    return min(SUSTAINED_CALLS, max(FEWEST_SUSTAINED_CALLS, ceil(SUSTAINED_MS / max(call_ms, 1e-3))))


def host_ms(call: Callable[[], object], device: Device) -> float:
    """Time a call by this rank's host, from a common start until the device is done; then the device rests.

    Args:
        call: The call.
        device: This rank's device.

    Returns:
        Milliseconds.
    """
    device.synchronize()
    beat()
    device.meet()
    start = time.perf_counter_ns()
    call()
    device.synchronize()
    elapsed = (time.perf_counter_ns() - start) / 1e6
    beat()
    device.rest(elapsed)
    return elapsed


def elapsed_ms(call: Callable[[], object], device: Device, calls: int = 1) -> float:
    """Time calls in a row on this rank's device, from a common start of all ranks; then the device rests.

    Args:
        call: The call.
        device: This rank's device.
        calls: How many calls are made.

    Returns:
        Milliseconds of all calls together.
    """
    device.synchronize()
    beat()
    device.align(calls)
    start = device.mark()
    for _ in range(calls):
        beat()
        call()
    stop = device.mark()
    device.synchronize()
    beat()
    elapsed = device.elapsed_ms(start, stop)
    device.rest(elapsed)
    return elapsed


def device_ms(calls: Sequence[Callable[[], object]], *, queued: bool = False) -> float:
    """Mean time of calls, made one after another on the current GPU, by its events.

    Args:
        calls: The calls.
        queued: Whether the device sleeps until the host has launched all of them, so that launching takes no part of
            the time. Where calls are long enough to hide launches, a sleep would only let a GPU at its power limit
            rest.

    Returns:
        Milliseconds of one call.
    """
    gpu = Cuda()
    if queued:
        torch.cuda._sleep(Cuda.call_cycles * (1 + len(calls)))
    start = gpu.mark()
    for call in calls:
        call()
    stop = gpu.mark()
    stop.synchronize()
    return gpu.elapsed_ms(start, stop) / len(calls)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a timed call."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
