"""`model_ttft`: the time to first token of a whole language model, a row per length, a column per percentage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from heteroring.figures.axes import spread
from heteroring.figures.bars import name_bars, reference_handles, value_bars
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import condition, model_details, tokens
from heteroring.figures.select_rows import model_cells
from heteroring.figures.style import look, ordered

if TYPE_CHECKING:
    from heteroring.results.results import Results


def model_ttft(results: Results) -> Figure:
    """Time to first token by strategy, at the lowest, the middle and the highest percentage measured.

    Each panel has its own axis from 0, and the value beside each bar; the lines are the capacity bound and the fast
    rank that computes the whole prompt by itself.
    """
    rows = model_cells(results, "prefill")
    chosen = spread(rows.percentage)
    lengths = sorted(set(rows.seq_len))
    strategies = ordered(rows.strategy)
    unit, scale = ("s", 1e-3) if rows.latency_ms.max() >= 1000 else ("ms", 1.0)
    figure = new_figure("model_ttft", 0.7 + len(lengths) * (0.4 + 0.14 * len(strategies)))
    panels = figure.subplots(len(lengths), len(chosen), sharey=True, squeeze=False)
    for line, length in zip(panels, lengths, strict=True):
        for panel, percentage in zip(line, chosen, strict=True):
            at = rows[(rows.seq_len == length) & (rows.percentage == percentage)]
            bars = zip(at.strategy.map(strategies.index), at.latency_ms, at.strategy.map(_bar), strict=True)
            value_bars(panel, bars, at, scale)
            panel.set_title(f"{tokens(length)} tokens, {condition(results, percentage)}")
    name_bars(panels.flat[0], strategies)
    handles = reference_handles(rows)
    if handles:
        legend_rows(figure, [handles])
    return finish(figure, results, model_details(rows), f"Time to first token ({unit})")


def _bar(strategy: str) -> dict:
    return look(strategy).bar()
