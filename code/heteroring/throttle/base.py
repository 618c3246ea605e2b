"""The life of a throttle, and the one that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar


def check_percentage(percentage: int) -> int:
    """Return `percentage`. Raises ValueError unless it is an integer from 1 to 100."""
    if isinstance(percentage, bool) or not isinstance(percentage, int) or not 1 <= percentage <= 100:
        raise ValueError(f"percentage {percentage!r} is not an integer from 1 to 100")
    return percentage


class Throttle:
    """Slows one rank to `percentage` of full speed. This one leaves every rank at full speed.

    The order of calls, each of which a throttle overrides if it needs it: `session` once, in the process that
    launches the ranks and around all of them; then in each rank `environment`, whose variables are set before CUDA
    starts, with those of the session, `start`, once the rank has its device, `wrap` for every function whose speed
    matters, and `report` at the end. A throttle that keeps a rank waiting calls `while_idle`, which may be set to
    something short, every now and then.

    Raises ValueError if `percentage` is not an integer from 1 to 100, or not one that this throttle can set.
    """

    name: ClassVar[str] = "none"
    platforms: ClassVar[tuple[str, ...]] = ("cpu", "gpu")

    def __init__(self, percentage: int) -> None:
        self.percentage = check_percentage(percentage)
        self.while_idle: Callable[[], None] = lambda: None
        if type(self) is Throttle and percentage != 100:
            raise ValueError(f"percentage {percentage} needs a throttle: 'none' runs every rank at 100")

    @classmethod
    def session(cls) -> AbstractContextManager[Mapping[str, str]]:
        """Whatever must run beside the ranks for as long as they do; environment variables that lead them to it."""
        return nullcontext({})

    def environment(self) -> Mapping[str, str]:
        """Environment variables of this rank."""
        return {}

    def start(self) -> None:
        """Take effect in this process."""

    def wrap(self, function: Callable) -> Callable:
        """`function`, slowed."""
        return function

    def report(self) -> dict[str, float]:
        """What this rank really got, by name: achieved_percentage, multiprocessors, ..."""
        return {}
