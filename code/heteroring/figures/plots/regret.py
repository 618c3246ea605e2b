"""`regret`: how much longer each allocator's split takes than the fastest measured split of its layout, in per cent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from heteroring.figures.axes import plain_numbers
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import run_details
from heteroring.figures.select_rows import MissingRows, shown
from heteroring.figures.style import INK, look, ordered
from heteroring.results.strategy import Strategy, parts_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

# Percent below which a difference is not drawn.
_LEAST = 0.1
_ORDERS = {"slow last": INK, "slow first": "white"}


def regret(results: Results) -> Figure:
    """A mark for each length, percentage and rank order with unequal ranks, and the median of each allocator.

    The best split is the fastest one measured, those around the balanced split among them; on it a mark lies at the
    lower edge, as everything below a tenth of a per cent does.
    """
    cells = shown(results.cells)
    rows = cells[(cells.system == "ring") & (cells.condition == "rested") & cells.order.isin(_ORDERS)]
    if not any(Strategy(name).shift for name in set(rows.strategy)):
        raise MissingRows("no splits around the balanced ones were measured")
    rows = rows[~rows.strategy.str.contains(":")]
    rows = rows.assign(percent=(100 * rows.regret).clip(lower=_LEAST))
    figure = new_figure("regret", 2.3)
    layouts = sorted(set(rows.layout))
    panels = figure.subplots(1, len(layouts), sharey=True, squeeze=False)[0]
    for panel, layout in zip(panels, layouts, strict=True):
        _panel(panel, rows[rows.layout == layout])
        panel.set_title(layout)
        panel.set_ylim(0.8 * _LEAST, 2 * rows.percent.max())
    panels[0].set_ylabel("Regret (%)")
    handles = [
        Line2D([], [], color=INK, marker="o", markerfacecolor=face, linestyle="none", label=order)
        for order, face in _ORDERS.items()
        if (rows.order == order).any()
    ]
    legend_rows(figure, [[*handles, Line2D([], [], color=INK, linewidth=1.4, label="median")]])
    return finish(figure, results, f"{run_details(results, rows)} Each mark is one length, percentage and order.")


def _panel(panel: Axes, rows: DataFrame) -> None:
    strategies = ordered(rows.strategy)
    for place, strategy in enumerate(strategies):
        own = rows[rows.strategy == strategy].sort_values(["seq_len", "percentage"])
        colour, middle = look(strategy).dark, own.percent.median()
        for order, face in _ORDERS.items():
            some = own[own.order == order]
            beside = [place + 0.36 * (index / max(1, len(some) - 1) - 0.5) for index in range(len(some))]
            filled = colour if face == INK else face
            panel.plot(beside, some.percent, color=colour, marker="o", markerfacecolor=filled, linestyle="none", ms=3)
        panel.plot([place - 0.32, place + 0.32], [middle] * 2, color=INK, linewidth=1.4)
    names = [parts_of(name)[1].replace("@", "\n@") for name in strategies]
    panel.set_xticks(range(len(strategies)), names, fontsize=7)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    plain_numbers(panel.yaxis)
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(axis="x", visible=False)
