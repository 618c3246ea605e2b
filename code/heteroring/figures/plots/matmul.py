"""The matmul profile: speed of square matrix products by size and throttle percentage.

The names keep the published study's `mps`; the axes name the throttle that was used. Sizes and percentages are
ordered, so their colours are a ramp and not the strategies' palette.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heteroring.figures.axes import length_axis, milliseconds_axis, percentage_axis, spread, throughput_unit
from heteroring.figures.canvas import finish, in_lines, legend_rows, new_figure
from heteroring.figures.captions import percentages_are, profile_details, throttle_label
from heteroring.figures.select_rows import profile_rows
from heteroring.figures.style import INK, UNIT_LINE, ramp_lines

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_IDEAL = {"color": INK, "linestyle": ":", "linewidth": 1.0}
_HEIGHT = 2.35


def matmul_latency_vs_size(results: Results) -> Figure:
    """Latency against n, log-log, at the lowest, middle and highest percentage; slope 3 is dotted."""
    rows = profile_rows(results, "matmul", "latency_ms")
    chosen = spread(rows.percentage)
    figure = new_figure("matmul_latency_vs_size", _HEIGHT)
    panel = figure.subplots()
    panel.set_yscale("log")
    sizes = np.array(sorted(set(rows["size"])))
    full = rows[(rows.percentage == chosen[-1]) & (rows["size"] == sizes[-1])].latency_ms.median()
    panel.plot(sizes, full * (sizes / sizes[-1]) ** 3, zorder=1.5, **_IDEAL)
    handles = _lines(panel, rows[rows.percentage.isin(chosen)], "size", "latency_ms", "percentage", "{} %")
    length_axis(panel, sizes)
    milliseconds_axis(panel.yaxis)
    panel.set_ylabel("Latency (ms)")
    legend_rows(figure, [[*handles, Line2D([], [], label="slope 3", **_IDEAL)]])
    return finish(figure, results, f"{profile_details(results, 'matmul')} {percentages_are(results)}", "Matrix size n")


def matmul_mps_latency(results: Results) -> Figure:
    """Latency against percentage on a logarithmic axis, a line per size."""
    rows = profile_rows(results, "matmul", "latency_ms")
    figure, panel = _against_percentage("matmul_mps_latency", rows, "latency_ms")
    panel.set_yscale("log")
    milliseconds_axis(panel.yaxis)
    panel.set_ylabel("Latency (ms)")
    return finish(figure, results, profile_details(results, "matmul"), throttle_label(results))


def matmul_mps_scaling(results: Results) -> Figure:
    """Throughput against percentage, a line per size; dotted: proportional to the fastest size at full speed."""
    rows = profile_rows(results, "matmul", "tflops")
    unit, factor = throughput_unit(rows.tflops.max())
    rows = rows.assign(throughput=rows.tflops * factor)
    ideal = Line2D([], [], label="proportional", **_IDEAL)
    figure, panel = _against_percentage("matmul_mps_scaling", rows, "throughput", ideal)
    ends = np.array([rows.percentage.min(), rows.percentage.max()])
    peak = rows.throughput[rows.percentage == ends[1]].max()
    panel.plot(ends, peak * ends / ends[1], zorder=1.5, **_IDEAL)
    panel.set_ylim(0, 1.06 * rows.throughput.max())
    panel.set_ylabel(f"Throughput ({unit})")
    return finish(figure, results, profile_details(results, "matmul"), throttle_label(results))


def matmul_mps_efficiency(results: Results) -> Figure:
    """Relative speed over nominal share; above 1.0 a throttled device loses less than its nominal share."""
    rows = profile_rows(results, "matmul", "relative_speed")
    rows = rows.assign(efficiency=100 * rows.relative_speed / rows.percentage)
    figure, panel = _against_percentage("matmul_mps_efficiency", rows, "efficiency")
    panel.axhline(1.0, **UNIT_LINE)
    panel.set_ylim(min(0.9, 0.95 * rows.efficiency.min()), max(1.1, 1.05 * rows.efficiency.max()))
    panel.set_ylabel("Relative speed / nominal share")
    return finish(figure, results, profile_details(results, "matmul"), throttle_label(results))


def _against_percentage(name: str, rows: DataFrame, column: str, *references: Line2D) -> tuple[Figure, Axes]:
    figure = new_figure(name, _HEIGHT)
    panel = figure.subplots()
    handles = _lines(panel, rows, "percentage", column, "size", "n = {:,}")
    percentage_axis(panel, rows.percentage, every=True)
    legend_rows(figure, in_lines([*handles, *references], 4), handlelength=1.7)
    return figure, panel


def _lines(panel: Axes, rows: DataFrame, x: str, y: str, group: str, label: str) -> list[Line2D]:
    """A line of y over x for each value of `group`; returns them as handles of a legend."""
    values = sorted(set(rows[group]))
    handles = []
    for value, style in zip(values, ramp_lines(len(values)), strict=True):
        line = rows[rows[group] == value].sort_values(x)
        handles += panel.plot(line[x], line[y], label=label.format(value), **style)
    return handles
