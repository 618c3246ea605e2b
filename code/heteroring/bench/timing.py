"""How one call is timed: all ranks start together, and the time that each one computes is counted."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

from heteroring.bench.device import Device
from heteroring.bench.heartbeat import beat


class Times(NamedTuple):
    """One rank's milliseconds for one call, and those of them that it was busy computing."""

    latency_ms: float
    busy_ms: float


class Busy:
    """Counts the time inside the functions that it wraps. In throttled ones, what the throttle adds counts."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: list[tuple[Any, Any]] = []

    def wrap(self, function: Callable) -> Callable:
        """`function`, timed each time it is called. It calls no other one that is."""

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            beat()
            start = self._device.mark()
            result = function(*args, **kwargs)
            self._marks.append((start, self._device.mark()))
            return result

        return counted

    def forget(self) -> None:
        """Count from zero again."""
        self._marks.clear()

    def total_ms(self) -> float:
        """Time inside the functions since `forget`; the device must be synchronized."""
        return sum(self._device.elapsed_ms(start, stop) for start, stop in self._marks)


def timed(call: Callable[[], object], busy: Busy, device: Device) -> Times:
    """Run `call`, which every rank does, and time it on this rank, as `elapsed_ms` does.

    The call's latency is that of the slowest rank.
    """
    busy.forget()
    latency_ms = elapsed_ms(call, device)
    return Times(latency_ms, busy.total_ms())


def elapsed_ms(call: Callable[[], object], device: Device, calls: int = 1) -> float:
    """Milliseconds that `calls` calls take on this rank, from a common start of all ranks; then the device rests."""
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


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a timed call."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
