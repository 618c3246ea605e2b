"""The matmul profile: how a square matrix product answers to size and to the throttle.

The names keep the published study's `mps`; the axes name the throttle that was used. Sizes and percentages are
ordered, so their colours are a ramp and not the strategies' palette.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from heteroring.figures.canvas import (
    finish,
    legend_rows,
    length_axis,
    milliseconds_axis,
    new_figure,
    percentage_axis,
    percentages_are,
    profile_details,
    throttle_label,
)
from heteroring.figures.scaling import spread
from heteroring.figures.select import MissingRows, profile_rows
from heteroring.figures.style import INK, UNIT_LINE, ramp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandas import DataFrame

    from heteroring.bench.results import Results

_MARKERS = "osD^vP*X"
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
    length_axis(panel, sizes, str)
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
    """Relative speed over nominal share; above 1.0 a throttled device loses less than it was told to."""
    rows = profile_rows(results, "matmul", "relative_speed")
    rows = rows.assign(efficiency=100 * rows.relative_speed / rows.percentage)
    figure, panel = _against_percentage("matmul_mps_efficiency", rows, "efficiency")
    panel.axhline(1.0, **UNIT_LINE)
    panel.set_ylim(min(0.9, 0.95 * rows.efficiency.min()), max(1.1, 1.05 * rows.efficiency.max()))
    panel.set_ylabel("Relative speed / nominal share")
    return finish(figure, results, profile_details(results, "matmul"), throttle_label(results))


def matmul_mps_bars(results: Results) -> Figure:
    """Slowdown bars from the line at 1.0, grouped by size, a bar per percentage; a dash at 100 / percentage."""
    rows = profile_rows(results, "matmul", "relative_speed")
    rows = rows[rows.percentage < 100]
    if rows.empty:
        raise MissingRows("no matmul profile below 100 %, so there is no slowdown to show")
    percentages, sizes = sorted(set(rows.percentage)), sorted(set(rows["size"]))
    figure = new_figure("matmul_mps_bars", _HEIGHT)
    panel = figure.subplots()
    width = 0.86 / len(percentages)
    colours = ramp(len(percentages))
    for index, percentage in enumerate(percentages):
        line = rows[rows.percentage == percentage]
        places = np.array([sizes.index(size) for size in line["size"]]) - 0.43 + (index + 0.5) * width
        panel.bar(places, 1 / line.relative_speed - 1, width, bottom=1, facecolor=colours[index], edgecolor="white")
        panel.hlines([100 / percentage] * len(places), places - width / 2, places + width / 2, color=INK, linewidth=1)
    panel.set_yscale("log", base=2)
    panel.set_ylim(
        min(0.94, 0.94 * (1 / rows.relative_speed).min()), 1.2 * max(100 / percentages[0], *(1 / rows.relative_speed))
    )
    panel.yaxis.set_major_locator(FixedLocator([2.0**power for power in range(-3, 8)]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.axhline(1.0, **UNIT_LINE)
    panel.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
    panel.tick_params(axis="x", length=0)
    panel.grid(axis="x", visible=False)
    panel.spines["bottom"].set_visible(False)
    panel.set_ylabel(r"Slowdown ($\times$)")
    handles = [Patch(facecolor=colour, label=f"{value} %") for colour, value in zip(colours, percentages, strict=True)]
    handles.append(Line2D([], [], color=INK, linewidth=1, label="ideal"))
    legend_rows(figure, _in_lines(handles, 5), handlelength=1.4)
    return finish(figure, results, f"{profile_details(results, 'matmul')} {percentages_are(results)}", "Matrix size n")


def throughput_unit(highest_tflops: float) -> tuple[str, float]:
    """Unit and factor that keep numbers readable: TFLOP/s, or GFLOP/s where all are below one TFLOP/s."""
    return ("TFLOP/s", 1.0) if highest_tflops >= 1 else ("GFLOP/s", 1000.0)


def _against_percentage(name: str, rows: DataFrame, column: str, *references: Line2D) -> tuple[Figure, Axes]:
    figure = new_figure(name, _HEIGHT)
    panel = figure.subplots()
    handles = _lines(panel, rows, "percentage", column, "size", "n = {}")
    percentage_axis(panel, rows.percentage, every=True)
    legend_rows(figure, _in_lines([*handles, *references], 4), handlelength=1.7)
    return figure, panel


def _lines(panel: Axes, rows: DataFrame, x: str, y: str, group: str, label: str) -> list[Line2D]:
    """A line of y over x for each value of `group`; returns them as handles of a legend."""
    values = sorted(set(rows[group]))
    handles = []
    for index, (value, colour) in enumerate(zip(values, ramp(len(values)), strict=True)):
        line = rows[rows[group] == value].sort_values(x)
        marker = _MARKERS[index % len(_MARKERS)]
        handles += panel.plot(line[x], line[y], color=colour, marker=marker, label=label.format(value))
    return handles


def _in_lines(handles: Sequence, most: int) -> list[list]:
    """The handles in as few lines as hold them, `most` at most in each, evenly filled."""
    count = -(-len(handles) // most)
    each = -(-len(handles) // count)
    return [list(handles[start : start + each]) for start in range(0, len(handles), each)]
