"""Strategies by name: layout and allocator, optionally with variants and the profile that a model is fitted to."""

from __future__ import annotations

import re
from typing import Self

from heteroring.ring.partition import LAYOUTS
from heteroring.words import check_distinct, closest

ALLOCATORS = ("even", "uneven", "lut", "formula", "balanced")
# Allocators that read a speed model, and the profile it is fitted to unless another is named, as in the public study.
FITTED = ("lut", "formula")
DEFAULT_SOURCE = "matmul"
OTHER_SOURCES = ("attention",)
# Variants of a call: without the fused first step, by point-to-point messages, or by the portable kernel, which skips
# masked tiles or, as `masked`, computes them. Variants of the split: `untiled`, balanced in single tokens instead of
# whole tiles; `quarter`, a model read at a quarter of the length; and "+5" or "-5", the shortest shard of a balanced
# split 5 % longer or shorter, at the cost of the longest.
CALL_VARIANTS = ("unfused", "p2p", "portable", "masked")
_SHIFT = re.compile(r"[+-][1-9][0-9]?")
# Allocator -> (kind of fitted model, operator that it must be fitted to; None: any) that it works with, the usual one
# first.
NEEDS = {
    "lut": (("lut", None),),
    "formula": (("formula", None),),
    "balanced": (("cost", None), ("lut", "attention")),
}


def name_of(layout: str, allocator: str, model_source: str = "") -> str:
    """The name of a split: that of its strategy; layout/allocator for a baseline or a plan's split, which have none.

    Args:
        layout: "contiguous" or "zigzag".
        allocator: The allocator, with its variants.
        model_source: The operator that its model was fitted to; empty for none.

    Returns:
        The name.
    """
    other = allocator.partition(":")[0] in FITTED and model_source in OTHER_SOURCES
    return f"{layout}/{allocator}" + f"@{model_source}" * other


def alone_name(rank: int, system: str = "alone") -> str:
    """The name, beside those of splits, of `rank` alone: alone/rank0, or fms/rank0 for FMS's generate."""
    return f"{system}/rank{rank}"


def parts_of(name: str) -> tuple[str, str]:
    """The layout of a split's name, and what follows the slash: also of a baseline, or of a plan's split."""
    layout, _, split = name.partition("/")
    return layout, split


def variants_of(allocator: str) -> tuple[str, ...]:
    """The variants in an allocator's column of rows."""
    return tuple(filter(None, allocator.partition(":")[2].split(".")))


class Strategy(str):
    """The name of a strategy, "layout/allocator": "zigzag/balanced", or "zigzag/lut@attention" with another profile.

    Variants follow the allocator, for experiments that change one thing at a time: "zigzag/balanced:untiled.unfused".
    It is a str, as in rows, configurations and legends. Raises ValueError, naming it, if layout, allocator, variant or
    profile do not exist, or the allocator does not use the variant or a profile.
    """

    def __new__(cls, name: str) -> Self:
        self = super().__new__(cls, name)
        known = self.layout in LAYOUTS and self.allocator in ALLOCATORS and "/" in name
        by_profile = "@" not in name or (self.allocator in FITTED and self.source in OTHER_SOURCES)
        if not known or not by_profile or not self._takes_variants():
            meant = closest(name, _ALL)
            raise ValueError(
                f"strategy {name!r} is unknown: a layout ({', '.join(LAYOUTS)}), a slash, and an allocator "
                f"({', '.join(ALLOCATORS)}), of which {' and '.join(FITTED)} may be followed by "
                f"{', '.join('@' + source for source in OTHER_SOURCES)}{f'; did you mean {meant}?' * bool(meant)}"
            )
        return self

    def _takes_variants(self) -> bool:
        names = self.variants
        fit = {"balanced": ("untiled",), **dict.fromkeys(FITTED, ("quarter",))}.get(self.allocator, ())
        shifts = [name for name in names if self.allocator == "balanced" and _SHIFT.fullmatch(name)]
        known = all(name in (*CALL_VARIANTS, *fit, *shifts) for name in names)
        return known and len(set(names)) == len(names) and len(shifts) < 2 and bool(names) == (":" in self)

    @property
    def layout(self) -> str:
        """The layout, "contiguous" or "zigzag"."""
        return parts_of(self)[0]

    @property
    def allocator(self) -> str:
        """The allocator, without its variants."""
        return self.with_variants.partition(":")[0]

    @property
    def with_variants(self) -> str:
        """The allocator with its variants, as in rows: "balanced:untiled"."""
        return parts_of(self)[1].partition("@")[0]

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants, such as "untiled"; () for none."""
        return variants_of(self.with_variants)

    @property
    def shift(self) -> int:
        """Percent by which the shortest shard is longer than balanced, 0 without such a variant."""
        return next((int(name) for name in self.variants if _SHIFT.fullmatch(name)), 0)

    @property
    def source(self) -> str:
        """The profile that a speed model of this strategy is fitted to."""
        return self.partition("@")[2] or DEFAULT_SOURCE

    def fitted_model(self, cost: str) -> str | None:
        """The name of the fitted model that the allocator needs, if any; `cost`: the profile for that of `balanced`."""
        if self.allocator not in NEEDS:
            return None
        kind, _ = NEEDS[self.allocator][0]
        return fitted_name(kind, cost if kind == "cost" else self.source)


STRATEGIES = tuple(Strategy(name_of(layout, allocator)) for layout in LAYOUTS for allocator in ALLOCATORS)
"""Every layout with every allocator, in the order in which tables and figures show them."""
EVEN, BALANCED = Strategy("contiguous/even"), Strategy("zigzag/balanced")
_ALL = (
    *STRATEGIES,
    *(f"{each}@{source}" for each in STRATEGIES if each.allocator in FITTED for source in OTHER_SOURCES),
)


def fitted_name(kind: str, source: str) -> str:
    """The name of a fitted model, and of its file without suffix.

    Args:
        kind: Kind of the model, such as "lut".
        source: The operator that it was fitted to.

    Returns:
        The name.
    """
    return f"{kind}-{source}"


def check_strategies(strategies: tuple[str, ...]) -> tuple[Strategy, ...]:
    """`strategies` as Strategy objects. Raises ValueError if there are none, one is unknown, or one occurs twice."""
    check_distinct("strategies", strategies)
    return tuple(map(Strategy, strategies))
