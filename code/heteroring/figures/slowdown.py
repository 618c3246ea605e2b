"""`strategy_eval`: how much slower than two equal ranks each strategy is, in every cell of the grid."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from heteroring.figures.canvas import finish, legend_rows, new_figure, run_details, throttle_label, tokens
from heteroring.figures.select import ring_cells, series
from heteroring.figures.style import INK, LAYOUTS, UNIT_LINE, look, ordered

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.bench.results import Results

_GROUP_WIDTH = 0.86
_BARS_PER_PANEL_ROW = 48
_FASTEST = {"marker": "v", "color": INK, "markersize": 3.2, "linestyle": "none"}
_DOUBLINGS = [2.0**power for power in range(-6, 11)]


def strategy_eval(results: Results) -> Figure:
    """Slowdown bars on a log-2 axis, from the line at 1.0 up (slower) or down (faster); the fastest is marked.

    The mark goes to the lowest latency of a group. That need not be the shortest bar: slowdown is relative to
    the strategy's own layout, and the two layouts differ even on equal ranks.
    """
    rows = ring_cells(results, "slowdown")
    lengths = sorted(set(rows.seq_len))
    percentages = sorted(set(rows.percentage))
    strategies = ordered(rows.strategy)
    columns = 1 if len(percentages) * len(strategies) > _BARS_PER_PANEL_ROW else min(2, len(lengths))
    count = ceil(len(lengths) / columns)
    figure = new_figure("strategy_eval", 0.85 + 1.15 * count)
    panels = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(lengths) :]:
        panel.set_axis_off()
    for panel, length in zip(panels.flat, lengths, strict=False):
        _bars(panel, rows[rows.seq_len == length], percentages, strategies)
        panel.set_title(f"{tokens(length)} tokens", loc="left")
    _slowdown_axis(panels.flat[0], rows.slowdown)
    panels.flat[0].set_xlim(-0.5, len(percentages) - 0.5)
    panels.flat[0].set_xticks(range(len(percentages)), [f"{value}" for value in percentages])
    for panel in panels[:, 0]:
        panel.set_ylabel(r"Slowdown ($\times$)")
    by_layout = [
        [look(strategy).bar_handle() for strategy in strategies if strategy.startswith(f"{layout}/")]
        for layout in LAYOUTS
    ]
    marks = [Line2D([], [], label="lowest latency", **_FASTEST)]
    legend_rows(figure, [row for row in (*by_layout, marks) if row])
    details = f"{run_details(results)} Slowdown is relative to even shards of the same layout with every rank at 100 %."
    return finish(figure, results, details, throttle_label(results, "throttled rank"))


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
        panel.plot(place[best.strategy, best.percentage], 1.12 * max(best.slowdown, 1.0), **_FASTEST)
    panel.grid(axis="x", visible=False)
    panel.tick_params(axis="x", length=0)
    panel.spines["bottom"].set_visible(False)


def _slowdown_axis(panel: Axes, slowdown) -> None:
    panel.set_yscale("log", base=2)
    panel.set_ylim(min(0.94, 0.92 * slowdown.min()), max(2.2, 1.3 * slowdown.max()))
    panel.yaxis.set_major_locator(FixedLocator(_DOUBLINGS))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
