"""`token_distribution`: share of the prompt that each allocator gives to the throttled rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from heteroring.figures.axes import percentage_axis
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import run_details, throttle_label, tokens
from heteroring.figures.select_rows import per_cell, ring_cells, series
from heteroring.figures.style import INK, LAYOUTS, by_layout, look, ordered

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_MOST_COLUMNS = 5
_NOMINAL = {"color": "#CFCFCF", "linestyle": "-", "linewidth": 3.2, "solid_capstyle": "round", "label": "nominal share"}
_IDEAL = {"color": INK, "linestyle": (0, (1, 1)), "linewidth": 1.2, "label": "ideal share (measured speed)"}
_CLAMPED = {
    "color": INK,
    "marker": "x",
    "markersize": 5,
    "markeredgewidth": 0.8,
    "linestyle": "none",
    "label": "prediction flagged",
}


def token_distribution(results: Results) -> Figure:
    """Share of the throttled rank in percent of the tokens: a row per layout, a column per length.

    Nominal share: its percentage over the sum of all. Ideal share: that which would keep every rank busy to the end,
    from the measured time of each rank alone. A cross marks a split whose model's prediction was clamped: read at the
    edge of its table, or kept positive.
    """
    rows = ring_cells(results)
    slow = rows.percentages.map(_throttled_rank)
    lens = zip(rows.block_lens, slow, strict=True)
    total = zip(rows.percentages, slow, strict=True)
    rows = rows.assign(
        share=[100 * split[rank] / sum(split) for split, rank in lens],
        nominal=[100 * nominal[rank] / sum(nominal) for nominal, rank in total],
        ideal=_ideal_share(rows),
    )
    layouts = [layout for layout in LAYOUTS if (rows.layout == layout).any()]
    lengths = sorted(set(rows.seq_len))[-_MOST_COLUMNS:]
    figure = new_figure("token_distribution", 0.85 + 1.2 * len(layouts))
    panels = figure.subplots(len(layouts), len(lengths), sharex=True, sharey=True, squeeze=False)
    for line, layout in zip(panels, layouts, strict=True):
        for panel, length in zip(line, lengths, strict=True):
            _shares(panel, series(rows, layout=layout, seq_len=length))
        line[0].set_ylabel(f"{layout}\nshare (%)")
    for panel, length in zip(panels[0], lengths, strict=True):
        panel.set_title(f"{tokens(length)} tokens")
    percentage_axis(panels[0, 0], rows.percentage)
    panels[0, 0].set_ylim(0, 1.08 * max(50.0, rows.share.max()))
    panels[0, 0].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2.5, 5, 10]))
    legend_rows(figure, _legend(rows))
    details = f"Tokens of the throttled rank in percent of all. {run_details(results, rows)}"
    return finish(figure, results, details, throttle_label(results, "throttled rank"))


def _throttled_rank(percentages: tuple) -> int:
    """The slowest rank; the last of equals, since that is the one a measurement throttles."""
    return max(rank for rank, value in enumerate(percentages) if value == min(percentages))


def _ideal_share(rows: DataFrame) -> np.ndarray:
    """Percent of the tokens at which the throttled rank's work is its share of the pooled speed.

    With P - 1 ranks at full speed that share is 1 - (P - 1) T* / T_fast. In zigzag work is linear in tokens; a
    contiguous last shard of share x does 1 - (1 - x)^2 of the causal work.
    """
    others = rows.percentages.map(len) - 1
    work = (1 - others * rows.bound_ms / rows.fast_alone_ms).clip(0, 1)
    return 100 * np.where(rows.layout == "zigzag", work, 1 - np.sqrt(1 - work))


def _shares(panel: Axes, rows: DataFrame) -> None:
    for column, style in (("nominal", _NOMINAL), ("ideal", _IDEAL)):
        line = per_cell(rows, column)
        panel.plot(line.percentage, line[column], zorder=1.5, **style)
    for strategy in ordered(rows.strategy):
        line = series(rows, strategy=strategy)
        panel.plot(line.percentage, line.share, **look(strategy).line())
    clamped = rows[rows.clamped.astype(bool)]
    panel.plot(clamped.percentage, clamped.share, zorder=4, **_CLAMPED)


def _legend(rows: DataFrame) -> list[list[Line2D]]:
    references = [Line2D([], [], **_NOMINAL)]
    if rows.ideal.notna().any():
        references.append(Line2D([], [], **_IDEAL))
    if rows.clamped.astype(bool).any():
        references.append(Line2D([], [], **_CLAMPED))
    return [*by_layout(rows.strategy), references]
