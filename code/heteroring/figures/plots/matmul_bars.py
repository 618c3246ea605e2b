"""`matmul_mps_bars`: measured slowdown of a throttled matmul beside its nominal slowdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from heteroring.figures.axes import grouped_bars_axis, slowdown_axis
from heteroring.figures.canvas import finish, in_lines, legend_rows, new_figure
from heteroring.figures.captions import percentages_are, profile_details
from heteroring.figures.select_rows import MissingRows, profile_rows
from heteroring.figures.style import INK, UNIT_LINE, ramp

if TYPE_CHECKING:
    from heteroring.results.results import Results

_GROUP_WIDTH = 0.86
_IDEAL = {"color": INK, "linewidth": 1.0}
_OUTLINE = withStroke(linewidth=2.4, foreground="white")  # a bar may be dark and higher than its ideal


def matmul_mps_bars(results: Results) -> Figure:
    """Slowdown bars from the line at 1.0, grouped by size, a bar per percentage; a dash at 100 / percentage."""
    rows = profile_rows(results, "matmul", "relative_speed")
    rows = rows[rows.percentage < 100]
    if rows.empty:
        raise MissingRows("no matmul profile below 100 %, so there is no slowdown to show")
    percentages, sizes = sorted(set(rows.percentage)), sorted(set(rows["size"]))
    figure = new_figure("matmul_mps_bars", 2.35)
    panel = figure.subplots()
    width = _GROUP_WIDTH / len(percentages)
    handles = []
    for index, (percentage, colour) in enumerate(zip(percentages, ramp(len(percentages)), strict=True)):
        bars = rows[rows.percentage == percentage]
        left = np.array([sizes.index(size) for size in bars["size"]]) - _GROUP_WIDTH / 2 + index * width
        style = {"facecolor": colour, "edgecolor": "white", "label": f"{percentage} %"}
        panel.bar(left, 1 / bars.relative_speed - 1, width, bottom=1, align="edge", **style)
        panel.hlines([100 / percentage] * len(bars), left, left + width, path_effects=[_OUTLINE], **_IDEAL)
        handles.append(Patch(**style))
    panel.axhline(1.0, **UNIT_LINE)
    slowdown_axis(panel, [*(1 / rows.relative_speed), *(100 / rows.percentage)])
    grouped_bars_axis(panel, sizes)
    legend_rows(figure, in_lines([*handles, Line2D([], [], label="ideal", **_IDEAL)], 5), handlelength=1.4)
    return finish(figure, results, f"{profile_details(results, 'matmul')} {percentages_are(results)}", "Matrix size n")
