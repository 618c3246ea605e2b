"""`strategy_eval`: latency of each strategy over one of two equal ranks, by length and percentage."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heteroring.figures.axes import grouped_bars_axis, slowdown_axis
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import run_details, throttle_label, tokens
from heteroring.figures.select_rows import ring_cells, series, slow_first
from heteroring.figures.style import INK, UNIT_LINE, by_layout, look, ordered

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_GROUP_WIDTH = 0.86
_BARS_PER_PANEL_ROW = 48
_FASTEST = {"marker": "v", "color": INK, "markersize": 3.2, "linestyle": "none"}


def strategy_eval(results: Results) -> Figure:
    """Every strategy with the slow rank last."""
    return _evaluated("strategy_eval", results, "throttled rank")


def strategy_eval_first(results: Results) -> Figure:
    """Every strategy with the slow rank first."""
    return _evaluated("strategy_eval_first", slow_first(results), "throttled first rank")


def _evaluated(name: str, results: Results, throttled: str) -> Figure:
    """Bars on a log-2 axis, from the line at 1.0 up (slower) or down (faster); the fastest of each group is marked.

    All are relative to the same reference, so that layouts compare: contiguous even shards with every rank at 100 %, as
    in the public study (the even shards that were measured, where those were not). A group in which all strategies of
    the fastest one's layout make the same split has no mark: they differ by chance.
    """
    rows = _relative(ring_cells(results, "slowdown"))
    lengths = sorted(set(rows.seq_len))
    percentages = sorted(set(rows.percentage))
    strategies = ordered(rows.strategy)
    columns = 1 if len(percentages) * len(strategies) > _BARS_PER_PANEL_ROW else min(2, len(lengths))
    count = ceil(len(lengths) / columns)
    figure = new_figure(name, 0.85 + 0.6 * count)
    panels = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(lengths) :]:
        panel.set_axis_off()
    for index, (panel, length) in enumerate(zip(panels.flat, lengths, strict=False)):
        _bars(panel, rows[rows.seq_len == length], percentages, strategies)
        slowdown_axis(panel, rows.slowdown)
        grouped_bars_axis(panel, percentages)
        panel.set_title(f"{tokens(length)} tokens", loc="left")
        panel.label_outer()
        if index // columns != count // 2:
            panel.set_ylabel("")  # one label for low panels
    for panel in panels.flat[len(lengths) - columns : len(lengths)]:
        panel.tick_params(labelbottom=True)  # above an empty slot too, which shared axes would leave unlabelled
    marks = [Line2D([], [], label="lowest latency", **_FASTEST)]
    legend_rows(figure, [*by_layout(strategies, bars=True), marks])
    details = f"{run_details(results, rows)} Relative to contiguous even shards with every rank at 100 %."
    return finish(figure, results, details, throttle_label(results, throttled))


def _relative(rows: DataFrame) -> DataFrame:
    """The rows with latency over that of the reference as their slowdown."""
    even = rows[(rows.percentage == 100) & (rows.allocator == "even")]
    reference = even[even.strategy == ordered(even.strategy)[0]].set_index("seq_len").latency_ms
    return rows.assign(slowdown=rows.latency_ms / rows.seq_len.map(reference))


def _bars(panel: Axes, rows: DataFrame, percentages: list[int], strategies: list[str]) -> None:
    width = _GROUP_WIDTH / len(strategies)
    place = {
        (strategy, percentage): group - _GROUP_WIDTH / 2 + (index + 0.5) * width
        for group, percentage in enumerate(percentages)
        for index, strategy in enumerate(strategies)
    }
    for strategy in strategies:
        line = series(rows, strategy=strategy)
        x = [place[strategy, percentage] for percentage in line.percentage]
        panel.bar(x, line.slowdown - 1.0, bottom=1.0, width=width, **look(strategy).bar())
    panel.axhline(1.0, **UNIT_LINE)
    for _, best in rows.loc[rows.groupby("percentage").latency_ms.idxmin()].iterrows():
        layout = series(rows, layout=best.layout, percentage=best.percentage)
        if len(layout) == 1 or layout.block_lens.nunique() > 1:
            panel.plot(place[best.strategy, best.percentage], 1.12 * max(best.slowdown, 1.0), **_FASTEST)
