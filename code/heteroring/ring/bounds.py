"""Lower bounds on the time of ranks of known speeds for work that they share, however it is split. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def capacity_bound(alone: Sequence[float]) -> float:
    """Least time for work that all ranks share: T* = 1 / sum_r (1 / T_r).

    Args:
        alone: The time that each rank alone needs for all of the work.

    Returns:
        The time, in the unit of `alone`.

    Raises:
        ValueError: If there are no times or one is not positive.
    """
    if not alone:
        raise ValueError("the capacity bound of no ranks is undefined")
    for rank, time in enumerate(alone):
        if not time > 0:
            raise ValueError(f"time of rank {rank} alone is {time}: it must be positive")
    return 1.0 / sum(1.0 / time for time in alone)


def two_kind_bound(attention: Sequence[float], rest: Sequence[float]) -> float:
    """Least time for two kinds of work that all ranks share, however both are split.

    A rank may be slower by one ratio in attention and by another in the rest, so it can pay to give some ranks more of
    one kind: the bound is the least T with attention_r x_r + rest_r y_r <= T on every rank, x and y each summing to 1.
    It is never above the `capacity_bound` of the sums, and equal to it where all ratios are equal.

    Args:
        attention: The time that each rank alone needs for all of the attention.
        rest: The time that each rank alone needs for everything else, 0 or more.

    Returns:
        The time, in the unit of the arguments.

    Raises:
        ValueError: If there are no times, one of attention is not positive, or the numbers of ranks differ.
    """
    if not any(rest):
        return capacity_bound(attention)
    capacity_bound(attention)  # raises
    times = [(a, max(b, 1e-12 * a)) for a, b in zip(attention, rest, strict=True)]  # rest may be 0
    # In an optimum, the ranks that are relatively best at attention do only that, one rank at most does both kinds, and
    # the others do the rest.
    rates = sorted(((1 / a, 1 / b) for a, b in times), key=lambda rate: rate[1] / rate[0])
    behind = [0.0, *accumulate(other for _, other in reversed(rates))]
    before, most = 0.0, 0.0
    for (attend, other), after in zip(rates, reversed(behind[:-1]), strict=True):
        part = min(max((other + after - before) / (attend + other), 0.0), 1.0)
        most = max(most, before + part * attend if part else after + other)
        before += attend
    return 1 / most
