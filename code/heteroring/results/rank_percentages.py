"""The percentages of a ring's ranks, in rank order: their form in a configuration, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def ranks_of(entry: int | Sequence[int]) -> tuple[int, ...]:
    """The percentages that an entry of a configuration stands for: p is two ranks, at 100 and at p."""
    return (100, entry) if isinstance(entry, int) else tuple(entry)


def order_of(percentages: Sequence[int]) -> str:
    """How the ranks' speeds are ordered: "equal"; "slow last" or "slow first", of one slow rank; else the percentages.

    One rank is slow if it is slower than the others, which are all equal.
    """
    first, *others = percentages
    *front, last = percentages
    if len(set(percentages)) == 1:
        return "equal"
    if len(set(front)) == 1 and last < front[0]:
        return "slow last"
    if len(set(others)) == 1 and first < others[0]:
        return "slow first"
    return " ".join(map(str, percentages))


def in_short(percentages: Sequence[int]) -> str:
    """The percentages, with consecutive equal ones counted: "3 x 100, 10"."""
    runs = [(value, len(list(run))) for value, run in groupby(percentages)]
    return ", ".join(f"{count} x {value}" if count > 1 else f"{value}" for value, count in runs)
