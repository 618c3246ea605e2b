"""`extreme_heterogeneity`: latency where the ranks differ most, a panel per length, a bar per strategy."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import condition, run_details, tokens
from heteroring.figures.select import peer_cells, ring_cells
from heteroring.figures.style import ALONE_LINE, BOUND_LINE, PEER_COLOUR, PEER_LINE, look, ordered

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.bench.results import Results

_REFERENCES = {"bound_ms": BOUND_LINE, "fast_alone_ms": ALONE_LINE}
_VALUE = {"padding": 1.5, "fontsize": 7, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.4}, "zorder": 4}


def extreme_heterogeneity(results: Results) -> Figure:
    """Latency at the lowest percentage measured, each panel on its own axis from 0, with the value beside each bar."""
    rows = ring_cells(results, "latency_ms")
    lowest = rows.percentage.min()
    rows = rows[rows.percentage == lowest]
    peers = peer_cells(results)
    peers = peers[peers.percentage == lowest]
    lengths = sorted(set(rows.seq_len))
    strategies = ordered(rows.strategy)
    columns = min(len(lengths), 5)
    count = ceil(len(lengths) / columns)
    bars = len(strategies) + bool(len(peers))
    figure = new_figure("extreme_heterogeneity", 0.6 + count * (0.45 + 0.125 * bars))
    panels = figure.subplots(count, columns, sharey=True, squeeze=False)
    for panel in panels.flat[len(lengths) :]:
        panel.set_axis_off()
    for panel, length in zip(panels.flat, lengths, strict=False):
        _bars(panel, rows[rows.seq_len == length], peers[peers.seq_len == length], strategies)
        panel.set_title(f"{tokens(length)} tokens")
    labels = strategies + ([PEER_LINE["label"]] if len(peers) else [])
    panels.flat[0].set_yticks(range(len(labels)), labels)
    panels.flat[0].set_ylim(len(labels) - 0.5, -0.5)
    present = [style for column, style in _REFERENCES.items() if rows[column].notna().any()]
    if present:
        legend_rows(figure, [[Line2D([], [], **style) for style in present]])
    heading = condition(results, lowest)
    details = f"{heading[0].upper()}{heading[1:]}. {run_details(results)}"
    return finish(figure, results, details, "Latency (ms)")


def _bars(panel: Axes, rows: DataFrame, peers: DataFrame, strategies: list[str]) -> None:
    for _, row in rows.iterrows():
        bar = panel.barh(strategies.index(row.strategy), row.latency_ms, height=0.78, **look(row.strategy).bar())
        panel.bar_label(bar, [three_digits(row.latency_ms)], **_VALUE)
    for latency in peers.latency_ms:
        bar = panel.barh(len(strategies), latency, height=0.78, facecolor=PEER_COLOUR, edgecolor=PEER_COLOUR)
        panel.bar_label(bar, [three_digits(latency)], **_VALUE)
    for column, style in _REFERENCES.items():
        if rows[column].notna().any():
            panel.axvline(rows[column].median(), zorder=3, **style)
    panel.set_xlim(0, 1.42 * max([*rows.latency_ms, *peers.latency_ms]))
    panel.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 1.20, 123, 1234."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")
