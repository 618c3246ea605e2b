"""`extreme_heterogeneity`: latency at the lowest percentage, a panel per length, a bar per strategy."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heteroring.figures.bars import name_bars, reference_handles, value_bars
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import condition, run_details, tokens
from heteroring.figures.select_rows import baseline_cells, ring_cells
from heteroring.figures.style import BASELINE_COLOUR, BASELINE_LINE, look, ordered

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_BASELINE = {"facecolor": BASELINE_COLOUR, "edgecolor": BASELINE_COLOUR}


def extreme_heterogeneity(results: Results) -> Figure:
    """Latency at the lowest percentage measured, each panel on its own axis from 0, with the value beside each bar."""
    rows = ring_cells(results, "latency_ms")
    lowest = rows.percentage.min()
    rows = rows[rows.percentage == lowest]
    baselines = baseline_cells(results)
    baselines = baselines[baselines.percentage == lowest]
    lengths = sorted(set(rows.seq_len))
    strategies = ordered(rows.strategy)
    columns = min(len(lengths), 5)
    count = ceil(len(lengths) / columns)
    bars = len(strategies) + bool(len(baselines))
    figure = new_figure("extreme_heterogeneity", 0.6 + count * (0.45 + 0.125 * bars))
    panels = figure.subplots(count, columns, sharey=True, squeeze=False)
    for panel in panels.flat[len(lengths) :]:
        panel.set_axis_off()
    for panel, length in zip(panels.flat, lengths, strict=False):
        _bars(panel, rows[rows.seq_len == length], baselines[baselines.seq_len == length], strategies)
        panel.set_title(f"{tokens(length)} tokens")
    name_bars(panels.flat[0], strategies + ([BASELINE_LINE["label"]] if len(baselines) else []))
    handles = reference_handles(rows)
    if handles:
        legend_rows(figure, [handles])
    heading = condition(results, lowest)
    details = f"{heading[0].upper()}{heading[1:]}. {run_details(results, rows)}"
    return finish(figure, results, details, "Latency (ms)")


def _bars(panel: Axes, rows: DataFrame, baselines: DataFrame, strategies: list[str]) -> None:
    bars = [(strategies.index(row.strategy), row.latency_ms, look(row.strategy).bar()) for _, row in rows.iterrows()]
    bars += [(len(strategies), latency, _BASELINE) for latency in baselines.latency_ms]
    value_bars(panel, bars, rows)
