"""`latency_scaling`: latency against sequence length, beside quadratic growth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heteroring.figures.axes import length_axis, milliseconds_axis, spread
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import condition, run_details
from heteroring.figures.select_rows import baseline_cells, ring_cells, series
from heteroring.figures.style import BASELINE_LINE, INK, by_layout, look, ordered

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_IDEAL = {"color": INK, "linestyle": ":", "linewidth": 1.0}


def latency_scaling(results: Results) -> Figure:
    """Log-log, a panel each for the lowest, the middle and the highest percentage.

    The dotted line has the ideal slope, 2. It passes through the capacity bound at the longest length (the lowest
    latency there, where the bound was not measured), so the distance to it is the loss of a strategy.
    """
    rows = ring_cells(results, "latency_ms")
    baselines = baseline_cells(results)
    strategies = ordered(rows.strategy)
    chosen = spread(rows.percentage)
    figure = new_figure("latency_scaling", 2.85)
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for panel, percentage in zip(panels, chosen, strict=True):
        panel.set_yscale("log")
        at = rows[rows.percentage == percentage]
        lengths = np.array(sorted(set(at.seq_len)))
        panel.plot(lengths, _anchor(at) * (lengths / lengths[-1]) ** 2, zorder=1.5, **_IDEAL)
        torch = series(baselines, percentage=percentage)
        if len(torch):
            panel.plot(torch.seq_len, torch.latency_ms, zorder=1.6, **BASELINE_LINE)
        for strategy in strategies:
            line = series(at, strategy=strategy)
            panel.plot(line.seq_len, line.latency_ms, **look(strategy).line())
        length_axis(panel, rows.seq_len)
        panel.set_title(condition(results, percentage))
    milliseconds_axis(panels[0].yaxis)
    panels[0].set_ylabel("Latency (ms)")
    references = [Line2D([], [], label="slope 2 through the bound", **_IDEAL)]
    if len(baselines):
        references.append(Line2D([], [], **BASELINE_LINE))
    legend_rows(figure, [*by_layout(strategies), references])
    return finish(figure, results, run_details(results, rows), "Sequence length (tokens)")


def _anchor(rows: DataFrame) -> float:
    longest = rows[rows.seq_len == rows.seq_len.max()]
    return float(longest.bound_ms.median() if longest.bound_ms.notna().any() else longest.latency_ms.min())
