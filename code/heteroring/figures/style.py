"""The style of each strategy in all figures: one colour, one marker, one label.

The allocator gives hue and marker. The layout gives shade and stroke, so that it survives a grey printer:
contiguous is light, dashed, hatched and open; zigzag is dark, solid and filled. The ten colours stay at least 15
apart in CIELAB for readers with protanopia, deuteranopia or tritanopia (a test measures it).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.resources import files

import matplotlib
import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from heteroring.results.strategy import STRATEGIES, Strategy, name_of
from heteroring.ring.partition import LAYOUTS

# (contiguous, zigzag) colours and the marker of each allocator, in the order in which figures show them
_ALLOCATORS = {
    "even": (("#B8B8B8", "#404040"), "o"),
    "uneven": (("#6FBDF0", "#0B55C0"), "s"),
    "lut": (("#E4CF50", "#A87E00"), "^"),
    "formula": (("#CC70B2", "#5E0A66"), "D"),
    "balanced": (("#FB8072", "#A81C14"), "P"),
}
_RAMP_MARKERS = "osD^vP*X"

INK = "#000000"
NOTE_COLOUR = "#555555"
BASELINE_COLOUR = "#00796B"
WAITING_COLOUR = "#EDEDED"

# References of strategies: keyword arguments for `Axes.plot` or `Axes.axvline`.
UNIT_LINE = {"color": INK, "linewidth": 0.6, "zorder": 1.5}
BOUND_LINE = {"color": INK, "linestyle": (0, (1, 1)), "linewidth": 1.2, "label": "capacity bound"}
ALONE_LINE = {"color": "#6B6B6B", "linestyle": "-.", "linewidth": 0.9, "label": "fast rank alone"}
BASELINE_LINE = {
    "color": BASELINE_COLOUR,
    "marker": "*",
    "markersize": 5,
    "linewidth": 0.8,
    "label": "torch context_parallel",
}


@dataclass(frozen=True)
class Look:
    """Everything that tells one strategy from another. `hatch` and `open` follow the layout."""

    label: str
    colour: str
    dark: str
    marker: str
    linestyle: str
    hatch: str
    open: bool

    def line(self) -> dict:
        """Keyword arguments for `Axes.plot`."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.linestyle,
            "markerfacecolor": "white" if self.open else self.colour,
            "markeredgecolor": self.colour,
            "label": self.label,
        }

    def bar(self) -> dict:
        """Keyword arguments for `Axes.bar` and `Axes.barh`.

        The hatch takes the edge's colour; bars without one get a white edge, which parts dark neighbours in print.
        """
        edge = self.dark if self.hatch else "white"
        return {"facecolor": self.colour, "edgecolor": edge, "hatch": self.hatch, "label": self.label}

    def line_handle(self) -> Line2D:
        """Its legend handle for lines."""
        return Line2D([], [], **self.line())

    def bar_handle(self) -> Patch:
        """Its legend handle for bars."""
        return Patch(**self.bar())


def look(strategy: str) -> Look:
    """The look of `strategy`, that of its layout and allocator. ValueError for one that does not exist."""
    strategy = Strategy(strategy)
    (light, dark), marker = _ALLOCATORS[strategy.allocator]
    contiguous = strategy.layout == "contiguous"
    return Look(
        label=strategy,
        colour=light if contiguous else dark,
        dark=dark,
        marker=marker,
        linestyle="--" if contiguous else "-",
        hatch="/////" if contiguous else "",
        open=contiguous,
    )


def ordered(strategies: Iterable[str]) -> list[Strategy]:
    """The given strategies without duplicates, in the order of every legend."""

    def place(strategy: Strategy) -> tuple[int, str]:
        return STRATEGIES.index(name_of(strategy.layout, strategy.allocator)), strategy

    return sorted(map(Strategy, set(strategies)), key=place)


def by_layout(strategies: Iterable[str], *, bars: bool = False) -> list[list[Artist]]:
    """The handles of a legend, a line for each layout that occurs."""
    names = ordered(strategies)
    lines = [[look(name) for name in names if name.layout == layout] for layout in LAYOUTS]
    return [[one.bar_handle() if bars else one.line_handle() for one in line] for line in lines if line]


def paper_style() -> AbstractContextManager:
    """Context with the style sheet, on top of matplotlib's defaults and nothing else."""
    return matplotlib.style.context(str(files(__package__) / "paper.mplstyle"), after_reset=True)


def ramp(count: int) -> list[tuple]:
    """`count` colours from dark to light for an ordered quantity (sizes, percentages), none too pale for white."""
    return [matplotlib.colormaps["viridis"](0.86 * index / max(1, count - 1)) for index in range(count)]


def ramp_lines(count: int) -> list[dict]:
    """Keyword arguments for `Axes.plot`, for `count` lines of an ordered quantity."""
    return [
        {"color": colour, "marker": _RAMP_MARKERS[index % len(_RAMP_MARKERS)]}
        for index, colour in enumerate(ramp(count))
    ]
