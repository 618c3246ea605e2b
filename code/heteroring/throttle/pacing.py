"""Pacing: a CPU rank at p % idles t * (100/p - 1) after each t seconds of computing."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import ClassVar

from heteroring.throttle.base import Throttle

SPIN_SECONDS = 0.0003


def sleep_until(
    deadline: float, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return at `deadline` of `clock`, in seconds, and not measurably later.

    The kernel wakes a sleeper late by some 0.1 ms, which is as long as a small block takes to compute; so the
    last SPIN_SECONDS are spent looking at the clock.
    """
    while (remaining := deadline - clock()) > SPIN_SECONDS:
        sleep(remaining - SPIN_SECONDS)
    while clock() < deadline:
        pass


class Pacing(Throttle):
    """Emulates a slower device by idling after every wrapped call.

    Idle time belongs to the device that is emulated: to whoever times the wrapped call, it is computing.
    `clock` (seconds) and `sleep` (seconds) are replaceable for tests.
    """

    name: ClassVar[str] = "pacing"
    platforms: ClassVar[tuple[str, ...]] = ("cpu",)

    def __init__(
        self,
        percentage: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(percentage)
        self._clock, self._sleep = clock, sleep
        self._computing = self._total = 0.0

    def wrap(self, function: Callable) -> Callable:
        @wraps(function)
        def paced(*args, **kwargs):
            start = self._clock()
            result = function(*args, **kwargs)
            computed = self._clock()
            self._idle(start, computed)
            return result

        return paced

    def _idle(self, start: float, computed: float) -> None:
        seconds = computed - start
        if self.percentage < 100:
            sleep_until(start + seconds * 100 / self.percentage, self._clock, self._sleep)
        self._computing += seconds
        self._total += self._clock() - start

    def report(self) -> dict[str, float]:
        """achieved_percentage: share of the paced time that was spent computing. Empty before the first call."""
        return {"achieved_percentage": 100 * self._computing / self._total} if self._total else {}
