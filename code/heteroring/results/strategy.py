"""Strategies by name: layout, allocator, and optionally the profile that a speed model is fitted to."""

from __future__ import annotations

from typing import Self

from heteroring.ring.partition import LAYOUTS
from heteroring.words import check_distinct, closest

ALLOCATORS = ("even", "uneven", "lut", "formula", "balanced")
# Allocators that read a speed model, and the profile it is fitted to unless another is named, as in the public study.
FITTED = ("lut", "formula")
DEFAULT_SOURCE = "matmul"
OTHER_SOURCES = ("attention",)
# Allocator -> kind of the fitted model that it works with.
_MODELS = {**{kind: kind for kind in FITTED}, "balanced": "cost"}


class Strategy(str):
    """The name of a strategy, "layout/allocator": "zigzag/balanced", or "zigzag/lut@attention" with another profile.

    It is the text itself, as rows, configurations and legends hold it. Raises ValueError, naming it, if layout,
    allocator or profile do not exist, or the allocator reads no speed model and a profile is named.
    """

    def __new__(cls, name: str) -> Self:
        self = super().__new__(cls, name)
        known = self.layout in LAYOUTS and self.allocator in ALLOCATORS and "/" in name
        if not known or ("@" in name and (self.allocator not in FITTED or self.source not in OTHER_SOURCES)):
            meant = closest(name, _ALL)
            raise ValueError(
                f"strategy {name!r} is unknown: a layout ({', '.join(LAYOUTS)}), a slash, and an allocator "
                f"({', '.join(ALLOCATORS)}), of which {' and '.join(FITTED)} may be followed by "
                f"{', '.join('@' + source for source in OTHER_SOURCES)}{f'; did you mean {meant}?' * bool(meant)}"
            )
        return self

    @property
    def layout(self) -> str:
        return self.partition("/")[0]

    @property
    def allocator(self) -> str:
        return self.partition("/")[2].partition("@")[0]

    @property
    def source(self) -> str:
        """The profile that a speed model of this strategy is fitted to."""
        return self.partition("@")[2] or DEFAULT_SOURCE

    def model(self, cost: str) -> str | None:
        """The name of the fitted model that it works with, if any; `cost`: the profile that balanced's is fitted to."""
        kind = _MODELS.get(self.allocator)
        return kind and fitted_name(kind, cost if kind == "cost" else self.source)


STRATEGIES = tuple(Strategy(f"{layout}/{allocator}") for layout in LAYOUTS for allocator in ALLOCATORS)
"""Every layout with every allocator, in the order in which tables and figures show them."""
BALANCED = Strategy("zigzag/balanced")
_ALL = (
    *STRATEGIES,
    *(f"{each}@{source}" for each in STRATEGIES if each.allocator in FITTED for source in OTHER_SOURCES),
)


def fitted_name(kind: str, source: str) -> str:
    """What a model of `kind` fitted to the profile of `source` is called, and its file without suffix."""
    return f"{kind}-{source}"


def name_of(layout: str, allocator: str, model_source: str = "") -> str:
    """What a measured split is called: the name of its strategy; layout/allocator for a baseline that is none."""
    other = allocator in FITTED and model_source in OTHER_SOURCES
    return f"{layout}/{allocator}" + f"@{model_source}" * other


def check_strategies(strategies: tuple[str, ...]) -> tuple[Strategy, ...]:
    """`strategies` as such. Raises ValueError if there are none, one is unknown, or one occurs twice."""
    check_distinct("strategies", strategies)
    return tuple(map(Strategy, strategies))
