"""Common axes of figures: ticks at the data, plain numbers, suitable units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log10
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from heteroring.figures.captions import tokens
from heteroring.figures.style import NOTE_COLOUR

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_DOUBLINGS = [2.0**power for power in range(-6, 11)]


def percentage_axis(axes: Axes, percentages: Sequence[int], *, every: bool = False) -> None:
    """Ticks of an x axis where data are.

    Args:
        axes: The panel.
        percentages: The measured percentages.
        every: Whether every tick is labelled, and not only the ends and the middle of a long list.
    """
    values = sorted(set(percentages))
    labelled = values
    if not every and len(values) > 4:
        middle = min(values, key=lambda value: abs(value - (values[0] + values[-1]) / 2))
        labelled = [values[0], middle, values[-1]]
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_minor_locator(FixedLocator([value for value in values if value not in labelled]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    pad = max(3.0, 0.05 * (values[-1] - values[0]))
    axes.set_xlim(values[0] - pad, values[-1] + pad)


def length_axis(axes: Axes, lengths: Sequence[int], label=tokens) -> None:
    """A base-2 logarithmic x axis with exactly the measured lengths (or sizes) as ticks.

    Args:
        axes: The panel.
        lengths: The measured lengths.
        label: Gives the text of a tick.
    """
    values = sorted(set(lengths))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.set_xticklabels([label(value) for value in values])
    axes.set_xlim(values[0] / 1.25, values[-1] * 1.25)


def plain_numbers(axis: Axis) -> None:
    """Numbers at the ticks as the paper's text has them: 0.5, 20, 2,000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def milliseconds_axis(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis whose data are already drawn: 1, 2, 5 per decade, more where it is short."""
    low, high = axis.get_view_interval()
    decades = log10(high / low)
    if decades < 0.7:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.2 else (1,), numticks=12))
    plain_numbers(axis)
    axis.set_minor_formatter(NullFormatter())
    if decades < 2.2:
        axis.set_minor_locator(NullLocator())


def name_lines(panel: Axes, make_room: bool, least: float = 0.11) -> None:
    """Write the name of each labelled line beside its right end, joined to it by a thin line.

    Names are moved down where they would be too near to one another, and none is above the panel.

    Args:
        panel: The panel.
        make_room: Whether the layout must leave room for the names, there being no empty slot to the right.
        least: The least distance between names, as a fraction of the panel's height.
    """
    lines = [line for line in panel.lines if not line.get_label().startswith("_")]
    scale = panel.transScale + panel.transLimits
    free = 1.0
    for line in sorted(lines, key=lambda line: -line.get_ydata()[-1]):
        x, y = scale.transform((line.get_xdata()[-1], line.get_ydata()[-1]))
        place = min(y, free)
        free = place - least
        lead = Line2D([x, 1.02, 1.05], [y, place, place], transform=panel.transAxes, color=line.get_color())
        lead.set(linewidth=0.5, clip_on=False, zorder=1.4, in_layout=False, label="_lead")
        panel.add_artist(lead)
        name = panel.text(1.06, place, line.get_label(), transform=panel.transAxes, fontsize=7, va="center")
        name.set(color=line.get_color(), in_layout=make_room)


def stretched_axis(panel: Axes, above: float = 0.8, factor: float = 6.0) -> None:
    """A y axis from zero, stretched above a value; a line parts both.

    Args:
        panel: The panel.
        above: The value.
        factor: How many times as long a step is above it.
    """

    def place(value: ArrayLike) -> np.ndarray:
        return np.where(np.less(value, above), value, above + factor * np.subtract(value, above))

    def value(place: ArrayLike) -> np.ndarray:
        return np.where(np.less(place, above), place, above + np.subtract(place, above) / factor)

    panel.set_yscale("function", functions=(place, value))
    panel.yaxis.set_major_locator(FixedLocator([0, above / 2, above, above + 0.1, above + 0.2]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:.1f}"))
    panel.axhline(above, color=NOTE_COLOUR, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1.4, label="_stretched")


def slowdown_axis(panel: Axes, slowdowns: Iterable[float]) -> None:
    """A base-2 logarithmic y axis for bars from 1.0, the same distance up and down; halves and doubles as ticks."""
    slowdowns = list(slowdowns)
    panel.set_yscale("log", base=2)
    panel.set_ylim(min(0.94, 0.92 * min(slowdowns)), max(2.2, 1.3 * max(slowdowns)))
    panel.yaxis.set_major_locator(FixedLocator(_DOUBLINGS))
    plain_numbers(panel.yaxis)
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylabel(r"Slowdown ($\times$)")


def grouped_bars_axis(panel: Axes, groups: Sequence) -> None:
    """An x axis of named groups 0, 1, 2, ... whose only line is the panel's own at 1.0."""
    panel.set_xlim(-0.5, len(groups) - 0.5)
    panel.set_xticks(range(len(groups)), [f"{group:,}" for group in groups])
    panel.tick_params(axis="x", length=0)
    panel.grid(axis="x", visible=False)
    panel.spines["bottom"].set_visible(False)


def throughput_unit(highest_tflops: float) -> tuple[str, float]:
    """Unit and factor that keep numbers readable: TFLOP/s, or GFLOP/s where all are below one TFLOP/s."""
    return ("TFLOP/s", 1.0) if highest_tflops >= 1 else ("GFLOP/s", 1000.0)


def spread(values) -> list[int]:
    """The lowest, the middle and the highest of the distinct values, fewer where they coincide."""
    values = sorted(set(values))
    middle = min(values, key=lambda value: abs(value - (values[0] + values[-1]) / 2))
    return sorted({values[0], middle, values[-1]})
