"""The base class of throttles, which by itself leaves every rank at full speed."""

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
    """Slows one rank to a percentage of full speed. This base class leaves every rank at full speed.

    Methods are called in this order, and a throttle overrides those that it needs. The process that launches the ranks
    calls `session` once, around all of them. Each rank then calls `environment`, whose variables are set before CUDA
    starts, together with those of the session; `start`, once the rank has its device; `wrap` for every function to be
    slowed; and `report` at the end. A throttle that makes a rank idle calls `while_idle`, a short function that the
    launcher may set, from time to time.

    Args:
        percentage: The rank's percentage.

    Raises:
        ValueError: If `percentage` is not an integer from 1 to 100, or not one that this throttle can set.
    """

    name: ClassVar[str] = "none"
    device_kinds: ClassVar[tuple[str, ...]] = ("cpu", "gpu")
    can_change: ClassVar[bool] = False  # whether `set` takes other percentages

    def __init__(self, percentage: int) -> None:
        self.percentage = check_percentage(percentage)
        self.while_idle: Callable[[], None] = lambda: None
        if type(self) is Throttle and percentage != 100:
            raise ValueError(f"percentage {percentage} needs a throttle: 'none' runs every rank at 100")

    @classmethod
    def session(cls) -> AbstractContextManager[Mapping[str, str]]:
        """A context for as long as the ranks run; yields the environment variables that they need."""
        return nullcontext({})

    def environment(self) -> Mapping[str, str]:
        """Further environment variables of this rank."""
        return {}

    def start(self) -> None:
        """Take effect in this process."""

    def set(self, percentage: int) -> None:
        """Run later calls of wrapped functions at another percentage.

        Args:
            percentage: An integer from 1 to 100.

        Raises:
            ValueError: Where the share cannot change.
        """
        if check_percentage(percentage) != self.percentage:
            raise ValueError(f"throttle {self.name!r} cannot change from {self.percentage} % while it runs")

    def wrap(self, function: Callable) -> Callable:
        """Slow a function; a backend by `backend.wrapped(throttle.wrap)`, which keeps what it can do with pending KV.

        Args:
            function: What computes on this rank.

        Returns:
            A function like it, slowed; the function itself where nothing is to be slowed.
        """
        return function

    def report(self) -> dict[str, float]:
        """The share that this rank actually got, by name: achieved_percentage, multiprocessors, ..."""
        return {}
