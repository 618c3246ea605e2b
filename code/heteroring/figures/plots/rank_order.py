"""`rank_order`: latency with the slow rank at the front and at the back of the sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heteroring.figures.axes import percentage_axis, slowdown_axis
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import run_details, throttle_label, tokens
from heteroring.figures.select_rows import MissingRows, series, shown
from heteroring.figures.style import INK, LAYOUTS, UNIT_LINE, look, ordered
from heteroring.results.strategy import Strategy, alone_name
from heteroring.ring.partition import Partition
from heteroring.ring.workload import ring_time

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_ALLOCATORS = ("even", "uneven", "balanced")
_ORDERS = {"slow last": "-", "slow first": (0, (4, 2))}


def rank_order(results: Results) -> Figure:
    """Latency over the capacity bound against the slow rank's percentage, at the longest length; a panel per layout.

    Marks are measured, lines are predicted from score pairs, each rank computing its own at the speed that it has alone
    (`heteroring.ring.workload.ring_time`); filled and solid with the slow rank last, open and dashed with it first. For
    a slow rank of speed s, shards of equal length give 3 (1 + s) / 4s last and max(1 + s, 3s (1 + s)) / 4s first when
    contiguous, (1 + s) / 2s in zigzag in either order; shards in proportion to s give (2 + s) / (1 + s) last and
    (1 + 2s) / (1 + s) first when contiguous, and 1 in zigzag.
    """
    cells = shown(results.cells)
    cells = cells[(cells.condition == "rested") & cells.order.isin([*_ORDERS, "equal"])]
    cells = cells[cells.seq_len == cells.seq_len.max()]
    rows = cells[(cells.system == "ring") & cells.allocator.isin(_ALLOCATORS) & cells.bound_fraction.notna()]
    if not (rows.order == "slow first").any():
        raise MissingRows("no ring was measured with the slow rank first")
    alone = cells[cells.system == "alone"].set_index(["percentages", "strategy"]).latency_ms.to_dict()
    rows = rows.assign(over=1 / rows.bound_fraction, predicted=[_predicted(row, alone) for row in rows.itertuples()])
    figure = new_figure("rank_order", 2.6)
    layouts = [layout for layout in LAYOUTS if (rows.layout == layout).any()]
    panels = figure.subplots(1, len(layouts), sharey=True, squeeze=False)[0]
    for panel, layout in zip(panels, layouts, strict=True):
        _panel(panel, rows[rows.layout == layout])
        slowdown_axis(panel, [*rows.over, *rows.predicted])
        panel.set_ylabel("Latency over bound" if panel is panels[0] else "")
        percentage_axis(panel, rows.percentage)
        panel.set_title(layout)
    legend_rows(figure, _legend(rows))
    length = tokens(int(rows.seq_len.iloc[0]))
    details = f"{length} tokens. {run_details(results, rows)} Lines: predicted from score pairs."
    return finish(figure, results, details, throttle_label(results, "throttled rank"))


def _predicted(row: tuple, alone: dict) -> float:
    """`ring_time` of the row's split over its bound."""
    times = [alone[row.percentages, alone_name(rank)] for rank in range(len(row.percentages))]
    return ring_time(Partition(row.layout, row.block_lens), times) / row.bound_ms


def _panel(panel: Axes, rows: DataFrame) -> None:
    for strategy in ordered(rows.strategy):
        colour = look(strategy).dark
        for order, linestyle in _ORDERS.items():
            line = series(rows[rows.order.isin([order, "equal"])], strategy=strategy)
            face = colour if order == "slow last" else "white"
            panel.plot(line.percentage, line.predicted, color=colour, linestyle=linestyle, linewidth=0.8)
            panel.plot(
                line.percentage,
                line.over,
                color=colour,
                marker=look(strategy).marker,
                markerfacecolor=face,
                linestyle="none",
                label=f"{strategy}, {order}",
            )
    panel.axhline(1.0, **UNIT_LINE)


def _legend(rows: DataFrame) -> list[list[Line2D]]:
    looks = {Strategy(name).allocator: look(name) for name in ordered(rows.strategy)}
    allocators = [
        Line2D([], [], color=each.dark, marker=each.marker, linestyle="none", label=allocator)
        for allocator, each in looks.items()
    ]
    orders = [
        Line2D([], [], color=INK, marker="o", markerfacecolor=face, linestyle=_ORDERS[order], label=order)
        for order, face in (("slow last", INK), ("slow first", "white"))
    ]
    return [allocators, orders]
