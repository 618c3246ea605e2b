"""`rank_timeline`: busy and waiting time of each rank during a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator

from heteroring.digits import significant
from heteroring.figures.axes import spread
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import condition, run_details, tokens
from heteroring.figures.select_rows import MissingRows, ring_cells
from heteroring.figures.style import BOUND_LINE, LAYOUTS, NOTE_COLOUR, WAITING_COLOUR, look, ordered

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from heteroring.results.results import Results

LIMIT = 2.3
_BEST_FIRST = ("balanced", "uneven", "lut", "formula")
_WAITING = {"facecolor": WAITING_COLOUR, "edgecolor": "#9A9A9A", "linestyle": (0, (2, 1.5)), "linewidth": 0.5}


def rank_timeline(results: Results) -> Figure:
    """Horizontal bars of latency over the capacity bound, one per rank: busy in the strategy's colour, then waiting.

    An axis ends at LIMIT, and longer bars have their end written there.

    The longest length, at the lowest, the middle and the highest percentage; in each layout, even above balanced
    (or above the next allocator that was measured).
    """
    rows = ring_cells(results, "bound_ms")
    rows = rows[rows.seq_len == rows.seq_len.max()]
    strategies = _even_and_best(rows)
    rows = rows[rows.strategy.isin(strategies)]
    chosen = spread(rows.percentage)
    ranks = len(rows.iloc[0].busy_ms)
    figure = new_figure("rank_timeline", 0.75 + len(strategies) * (0.1 + 0.15 * ranks))
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for panel, percentage in zip(panels, chosen, strict=True):
        _bars(panel, rows[rows.percentage == percentage], strategies, ranks)
        panel.set_title(condition(results, percentage))
    figure.get_layout_engine().set(wspace=0.06)
    _rank_labels(panels[0], strategies, ranks)
    handles = [
        Patch(facecolor=NOTE_COLOUR, edgecolor="none", label="busy (strategy's colour)"),
        Patch(label="waiting", **_WAITING),
    ]
    handles.append(Line2D([], [], **BOUND_LINE))
    legend_rows(figure, [handles])
    details = f"{tokens(rows.seq_len.iloc[0])} tokens. {run_details(results, rows)}"
    return finish(figure, results, details, "Time over the capacity bound")


def _even_and_best(rows: DataFrame) -> list[str]:
    """Per layout, even and the allocator that it is compared with, as far as measured."""
    pairs = []
    for layout in LAYOUTS:
        present = {each.allocator: each for each in ordered(rows.strategy) if each.layout == layout}
        best = [name for name in _BEST_FIRST if name in present][:1]
        pairs += [present[name] for name in ("even", *best) if name in present]
    if not pairs:
        raise MissingRows(f"none of the strategies at length {rows.seq_len.max()} can be compared")
    return pairs


def _place(strategy: int, rank: int, ranks: int) -> float:
    return strategy * (ranks + 0.7) + rank


def _bars(panel: Axes, rows: DataFrame, strategies: list[str], ranks: int) -> None:
    for index, strategy in enumerate(strategies):
        for _, row in rows[rows.strategy == strategy].iterrows():
            _rank_bars(panel, row, index, ranks)
    panel.axvline(1.0, zorder=3, **BOUND_LINE)
    panel.xaxis.set_major_locator(MultipleLocator(0.5))
    panel.set_xlim(0, LIMIT)
    panel.grid(axis="y", visible=False)


def _rank_bars(panel: Axes, row: Series, index: int, ranks: int) -> None:
    places = [_place(index, rank, ranks) for rank in range(ranks)]
    busy = [each / row.bound_ms for each in row.busy_ms]
    latency = row.latency_ms / row.bound_ms
    waiting = [max(0.0, latency - each) for each in busy]
    panel.barh(places, busy, height=0.82, **look(row.strategy).bar())
    panel.barh(places, waiting, left=busy, height=0.82, **_WAITING)
    if latency > LIMIT:
        middle = sum(places) / len(places)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        panel.text(0.98 * LIMIT, middle, f"to {significant(latency)}", ha="right", va="center", fontsize=7, bbox=box)


def _rank_labels(panel: Axes, strategies: list[str], ranks: int) -> None:
    places = [_place(index, rank, ranks) for index in range(len(strategies)) for rank in range(ranks)]
    labels = [
        f"{strategy}  rank {rank}" if rank == 0 else f"rank {rank}" for strategy in strategies for rank in range(ranks)
    ]
    panel.set_yticks(places, labels)
    panel.set_ylim(places[-1] + 0.6, -0.6)
    panel.tick_params(axis="y", length=0)
