"""`simulation_error`: the simulated over the measured latency of every cell that was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from heteroring.figures.axes import length_axis
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import run_details, throttle_label
from heteroring.figures.select_rows import MissingRows, ring_cells
from heteroring.figures.simulated import platform_of
from heteroring.figures.style import LAYOUTS, UNIT_LINE, by_layout, look, ordered
from heteroring.ring.partition import Partition

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from heteroring.results.results import Results


def simulation_error(results: Results) -> Figure:
    """Simulated over measured latency of the attention call, one mark per cell, by length; a panel per layout.

    Marks of a length stand side by side, the strategies in the legend's order, each from the lowest percentage to the
    highest. Nothing is fitted to the cells: costs are those of the profile of one rank.
    """
    rows = simulated_cells(results)
    layouts = [layout for layout in LAYOUTS if (rows.layout == layout).any()]
    figure = new_figure("simulation_error", 2.7)
    panels = figure.subplots(1, len(layouts), sharey=True, squeeze=False)[0]
    for panel, layout in zip(panels, layouts, strict=True):
        shown = rows[rows.layout == layout]
        places = _places(shown)
        for strategy in ordered(shown.strategy):
            mine = shown[shown.strategy == strategy]
            style = look(strategy).line() | {"linestyle": "none", "markersize": 3}
            panel.plot(places[mine.index], mine.simulated_ms / mine.latency_ms, **style)
        panel.axhline(1.0, **UNIT_LINE)
        length_axis(panel, shown.seq_len)
        panel.set_xlim(shown.seq_len.min() / 1.6, shown.seq_len.max() * 1.6)
        panel.set_title(layout)
    panels[0].set_ylabel("Simulated over measured")
    legend_rows(figure, by_layout(rows.strategy))
    details = (
        f"{run_details(results, rows)} Simulated from the profile of one rank. At each length, from left to "
        f"right, low to high: {throttle_label(results)}."
    )
    return finish(figure, results, details, "Sequence length (tokens)")


def simulated_cells(results: Results) -> DataFrame:
    """The rested cells of the attention call, slow rank last, with `simulated_ms` beside latency_ms."""
    platform, rows = platform_of(results), ring_cells(results, "latency_ms")
    rows = rows[rows.module == "attention"]
    if rows.empty:
        raise MissingRows("the attention call was not measured")
    simulated = [
        platform.simulate(Partition(row.layout, row.block_lens), row.percentages).latency_us / 1e3
        for row in rows.itertuples()
    ]
    return rows.assign(simulated_ms=simulated).sort_values(["seq_len", "percentage"]).reset_index(drop=True)


def _places(rows: DataFrame) -> Series:
    """The place of each row's mark, by index: around its length, apart from the other marks of that length."""
    names, places = ordered(rows.strategy), {}
    for _, group in rows.groupby("seq_len"):
        group = group.assign(place=[names.index(name) for name in group.strategy]).sort_values(["place", "percentage"])
        places |= dict(zip(group.index, group.seq_len * 2 ** np.linspace(-0.4, 0.4, len(group)), strict=True))
    return rows.index.to_series().map(places)
