"""Horizontal bars with their values, and the reference times beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from heteroring.digits import significant
from heteroring.figures.axes import milliseconds_axis
from heteroring.figures.style import ALONE_LINE, BOUND_LINE

if TYPE_CHECKING:
    from pandas import DataFrame

REFERENCES = {"bound_ms": BOUND_LINE, "fast_alone_ms": ALONE_LINE}
_VALUE = {"padding": 1.5, "fontsize": 7, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.4}, "zorder": 4}


def value_bars(panel: Axes, bars: Iterable[tuple[int, float, Mapping]], references: DataFrame, scale: float = 1.0):
    """Bars on a logarithmic axis, which leaves room for the differences between the shorter ones.

    Args:
        panel: The panel.
        bars: (place from the top, milliseconds, look) of each bar.
        references: Cells; columns that REFERENCES names are drawn as lines, where they are known.
        scale: Factor from milliseconds to the unit of the axis.
    """
    widths = []
    for place, milliseconds, style in bars:
        widths.append(scale * milliseconds)
        bar = panel.barh(place, widths[-1], height=0.78, **style)
        panel.bar_label(bar, [significant(widths[-1], thousands=",")], **_VALUE)
    lines = {column: scale * references[column].median() for column in REFERENCES if references[column].notna().any()}
    for column, place in lines.items():
        panel.axvline(place, zorder=3, **REFERENCES[column])
    ends = [*widths, *lines.values()]
    panel.set_xscale("log")
    panel.set_xlim(0.7 * min(ends), 2.6 * max(ends))
    milliseconds_axis(panel.xaxis)
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)


def name_bars(panel: Axes, labels: Sequence[str]) -> None:
    """Names from the top down, for a panel and those that share its y axis."""
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.5, -0.5)


def reference_handles(rows: DataFrame) -> list[Line2D]:
    """Legend handles of those references that `rows` have."""
    return [Line2D([], [], **style) for column, style in REFERENCES.items() if rows[column].notna().any()]
