"""`module_comparison`: the attention call beside the whole attention layer, at the longest prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from heteroring.figures.axes import percentage_axis
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import MODULES, run_details, throttle_label, tokens
from heteroring.figures.select_rows import MissingRows, module_cells, series
from heteroring.figures.style import UNIT_LINE, by_layout, look, ordered

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results
    from heteroring.results.strategy import Strategy

_METRICS = {"speedup": r"Speedup over even ($\times$)", "bound_fraction": "Bound fraction"}


def module_comparison(results: Results) -> Figure:
    """Speedup over even shards of the same layout, and bound fraction, by percentage; one axis for both modules."""
    both = {module: module_cells(results, module, *_METRICS) for module in MODULES}
    shared = set.intersection(*(set(rows.seq_len) for rows in both.values()))
    if not shared:
        raise MissingRows("no length was measured with both modules")
    both = {module: rows[rows.seq_len == max(shared)] for module, rows in both.items()}
    strategies = ordered(strategy for rows in both.values() for strategy in rows.strategy)
    figure = new_figure("module_comparison", 2.3)
    panels = figure.subplots(1, len(_METRICS) * len(both), squeeze=False)[0]
    pairs = [panels[start : start + len(both)] for start in range(0, len(panels), len(both))]
    for (metric, label), pair in zip(_METRICS.items(), pairs, strict=True):
        highest = max(1.0, *(rows[metric].max() for rows in both.values()))
        for panel, (module, rows) in zip(pair, both.items(), strict=True):
            _lines(panel, rows, metric, strategies)
            panel.set_ylim(0, 1.06 * highest)
            panel.set_title(MODULES[module])
            percentage_axis(panel, rows.percentage)
        pair[0].set_ylabel(label)
    legend_rows(figure, by_layout(strategies))
    shape = run_details(results, both["fms"])
    details = f"{tokens(max(shared))} tokens. {shape} Speedup is relative to even shards of the same layout."
    return finish(figure, results, details, throttle_label(results, "throttled rank"))


def _lines(panel: Axes, rows: DataFrame, metric: str, strategies: list[Strategy]) -> None:
    panel.axhline(1.0, **UNIT_LINE)
    for strategy in strategies:
        if metric == "speedup" and strategy.allocator == "even":
            continue
        line = series(rows, strategy=strategy)
        if len(line):
            panel.plot(line.percentage, line[metric], **look(strategy).line())
    panel.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
