"""The throttle `pacing`: a CPU rank at p % idles for t * (100/p - 1) after every t seconds of computing."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import ClassVar

from heteroring.throttle.base import Throttle, check_percentage

SPIN_SECONDS = 0.0003
NAP_SECONDS = 0.1


def sleep_until(
    deadline: float, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Sleep until a time, not measurably longer, also if `sleep` returns early.

    Linux wakes a sleeper some 0.1 ms late, as long as a small rectangle of attention takes; so the last SPIN_SECONDS
    are spent polling the clock.

    Args:
        deadline: When to return, in seconds of `clock`.
        clock: The time, in seconds.
        sleep: Sleeps for some seconds.
    """
    while (remaining := deadline - clock()) > SPIN_SECONDS:
        sleep(remaining - SPIN_SECONDS)
    while clock() < deadline:
        pass


class Pacing(Throttle):
    """Emulates a slower device by idling after every wrapped call.

    To whoever times the wrapped call, idling counts as computing by the emulated device. Idle time is in proportion to
    the processor time of the calling thread; time that the thread spends waiting, for a message say, is not lengthened.

    `clock` (wall-clock seconds), `busy` (seconds of processor time) and `sleep` (seconds) are replaceable for tests.
    `while_idle` is called every NAP_SECONDS of idling, which can take minutes.
    """

    name: ClassVar[str] = "pacing"
    device_kinds: ClassVar[tuple[str, ...]] = ("cpu",)
    can_change: ClassVar[bool] = True

    def __init__(
        self,
        percentage: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
        busy: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(percentage)
        self._clock, self._busy, self._sleep = clock, busy, sleep
        self._computing = self._total = 0.0

    def set(self, percentage: int) -> None:
        """Pace later calls at another percentage."""
        self.percentage = check_percentage(percentage)

    def wrap(self, function: Callable) -> Callable:
        """Wrap a function so that this rank idles after each call."""

        @wraps(function)
        def paced(*args, **kwargs):
            start = self._busy()
            result = function(*args, **kwargs)
            self._idle(self._busy() - start)
            return result

        return paced

    def _idle(self, computing: float) -> None:
        """Idle for as long as the percentage requires after `computing` seconds of work."""
        start = self._clock()
        if self.percentage < 100:
            sleep_until(start + computing * (100 / self.percentage - 1), self._clock, self._nap)
        self._computing += computing
        self._total += computing + self._clock() - start

    def _nap(self, seconds: float) -> None:
        self._sleep(min(seconds, NAP_SECONDS))
        self.while_idle()

    def report(self) -> dict[str, float]:
        """achieved_percentage: time computing over time computing and idling. Empty before the first call."""
        return {"achieved_percentage": 100 * self._computing / self._total} if self._total else {}
