"""`many_ranks`: how near rings of more than two ranks come to the bound, in every setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heteroring.figures.canvas import finish, in_lines, legend_rows, panel_grid
from heteroring.figures.captions import percentages_are, run_details, tokens
from heteroring.figures.select_rows import MissingRows, shown
from heteroring.figures.style import BASELINE_LINE, INK, UNIT_LINE, look, ordered
from heteroring.results.metrics import choices_of_ranks
from heteroring.results.rank_percentages import in_short
from heteroring.results.strategy import BALANCED, STRATEGIES

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_STRATEGIES = tuple(each for each in STRATEGIES if each.allocator in ("even", "balanced"))
_TORCH = BASELINE_LINE | {"linestyle": "none"}
_FEWER = {"color": INK, "marker": "|", "markersize": 7, "linestyle": "none", "label": "the best of fewer ranks"}


def many_ranks(results: Results) -> Figure:
    """Bound fraction in every setting of the ranks' percentages, in rank order; a panel per length, up to four.

    The rings of all ranks under four strategies, the best ring of fewer ranks or rank alone, and torch's
    context_parallel; rested calls.
    """
    cells = shown(results.cells)
    cells = cells[(cells.percentages.map(len) > 2) & (cells.condition == "rested") & cells.bound_fraction.notna()]
    if cells.empty:
        raise MissingRows("no ring of more than two ranks was measured")
    settings = sorted(set(cells.percentages), key=lambda ranks: (sorted(ranks), ranks), reverse=True)
    strategies = [name for name in ordered(cells[cells.system == "ring"].strategy) if name in _STRATEGIES]
    lengths = sorted(set(cells.seq_len))[-4:]
    figure, panels, _ = panel_grid("many_ranks", len(lengths), panel_height=0.4 + 0.16 * len(settings))
    for panel, length in zip(panels, lengths, strict=True):
        _marks(panel, cells[cells.seq_len == length], settings, strategies)
        panel.set_xlim(0, max(1.08, 1.04 * cells.bound_fraction.max()))
        panel.set_title(f"{tokens(length)} tokens")
    handles = [Line2D([], [], **_look(name)) for name in strategies]
    handles += [Line2D([], [], **style) for system, style in _others(cells) if not system.empty]
    legend_rows(figure, in_lines(handles, 3))
    chosen = choices_of_ranks(cells)
    right = f"{BALANCED} used the best ranks in {chosen.right.sum()} of {len(chosen)} cells. " if len(chosen) else ""
    details = f"{run_details(results, cells)} {right}{percentages_are(results)}"
    return finish(figure, results, details, "Bound fraction")


def _look(strategy: str) -> dict:
    return look(strategy).line() | {"linestyle": "none"}


def _others(cells: DataFrame) -> list[tuple[DataFrame, dict]]:
    """What is drawn beside the rings of all ranks: one row per setting, and the look."""
    fewer = cells[cells.system.isin(["subset", "alone"])]
    fewer = fewer.loc[fewer.groupby(["seq_len", "percentages"]).latency_ms.idxmin()]
    return [(fewer, _FEWER), (cells[cells.system == "context_parallel"], _TORCH)]


def _marks(panel: Axes, cells: DataFrame, settings: list[tuple[int, ...]], strategies: list[str]) -> None:
    ring = cells[cells.system == "ring"]
    for rows, style in [*((ring[ring.strategy == name], _look(name)) for name in strategies), *_others(cells)]:
        panel.plot(rows.bound_fraction, rows.percentages.map(settings.index), **style)
    panel.axvline(1.0, **UNIT_LINE)
    panel.set_yticks(range(len(settings)), [in_short(ranks) for ranks in settings])
    panel.set_ylim(len(settings) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
