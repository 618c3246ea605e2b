"""One metric against the throttled rank's percentage: a panel per length, a line per strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from heteroring.figures.axes import milliseconds_axis, name_lines, percentage_axis, stretched_axis
from heteroring.figures.canvas import finish, legend_rows, panel_grid
from heteroring.figures.captions import run_details, throttle_label, tokens
from heteroring.figures.select_rows import MissingRows, baseline_cells, per_cell, ring_cells, series, slow_first
from heteroring.figures.style import ALONE_LINE, BASELINE_LINE, BOUND_LINE, UNIT_LINE, by_layout, look, ordered
from heteroring.results.strategy import BALANCED, EVEN

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results


def efficiency_vs_heterogeneity(results: Results) -> Figure:
    """Efficiency (homogeneous over measured latency, same layout); 1.0 is the speed of two full ranks."""
    rows = ring_cells(results, "efficiency")

    def reference(panel: Axes, length: int) -> None:
        panel.axhline(1.0, **UNIT_LINE)

    figure, panels = _small_multiples("efficiency_vs_heterogeneity", rows, "efficiency", reference)
    _from_zero(panels, rows.efficiency.max())
    _label_rows(panels, "Efficiency")
    details = f"{run_details(results, rows)} Relative to even shards of the same layout with every rank at 100 %."
    return finish(figure, results, details, throttle_label(results, "throttled rank"))


def latency_vs_heterogeneity(results: Results) -> Figure:
    """Latency in ms on a logarithmic axis, with the capacity bound, the fast rank alone and torch where measured."""
    rows = ring_cells(results, "latency_ms")
    references = [
        (per_cell(rows, "bound_ms"), "bound_ms", BOUND_LINE),
        (per_cell(rows, "fast_alone_ms"), "fast_alone_ms", ALONE_LINE),
        (baseline_cells(results), "latency_ms", BASELINE_LINE),
    ]
    references = [entry for entry in references if len(entry[0])]

    def reference(panel: Axes, length: int) -> None:
        panel.set_yscale("log")
        for frame, column, style in references:
            at = series(frame, seq_len=length)
            panel.plot(at.percentage, at[column], zorder=1.5, **style)

    handles = [Line2D([], [], **style) for _, _, style in references]
    figure, panels = _small_multiples("latency_vs_heterogeneity", rows, "latency_ms", reference, handles, share_y=False)
    for panel in panels:
        milliseconds_axis(panel.yaxis)
    _label_rows(panels, "Latency (ms)")
    return finish(figure, results, run_details(results, rows), throttle_label(results, "throttled rank"))


def speedup_over_even(results: Results) -> Figure:
    """Speedup over even shards of the same layout at the same percentage; 1.0 is no gain."""
    rows = ring_cells(results, "speedup")
    rows = rows[rows.allocator != "even"]
    if rows.empty:
        raise MissingRows("only allocator even was measured, which is what others are compared with")

    def reference(panel: Axes, length: int) -> None:
        panel.axhline(1.0, **UNIT_LINE)

    figure, panels = _small_multiples("speedup_over_even", rows, "speedup", reference)
    _from_zero(panels, rows.speedup.max())
    _label_rows(panels, r"Speedup over even ($\times$)")
    details = f"{run_details(results, rows)} Relative to even shards of the same layout at the same percentage."
    return finish(figure, results, details, throttle_label(results, "throttled rank"))


def bound_fraction(results: Results) -> Figure:
    """Capacity bound over latency with the slow rank last."""
    return _bound_fraction("bound_fraction", results, "throttled rank")


def bound_fraction_first(results: Results) -> Figure:
    """Capacity bound over latency with the slow rank first."""
    return _bound_fraction("bound_fraction_first", slow_first(results), "throttled first rank")


def _bound_fraction(name: str, results: Results, throttled: str) -> Figure:
    """Capacity bound over latency: 1.0 is every rank busy, on useful work only, all the time.

    Lines with their names at their ends: even, proportional and balanced contiguous shards, even and balanced zigzag
    ones, as far as they were measured; bands reach from the lowest to the highest job. The axis is stretched where the
    best of them differ.
    """
    rows = ring_cells(results, "bound_fraction")
    rows = rows[rows.strategy.isin(_FEW)] if rows.strategy.isin(_FEW).any() else rows

    def reference(panel: Axes, length: int) -> None:
        panel.axhline(1.0, **UNIT_LINE)

    figure, panels = _small_multiples(name, rows, "bound_fraction", reference, legend=False)
    for panel in panels:
        stretched_axis(panel)
    panels[0].set_ylim(0, 1.02 * max(1.0, rows.bound_fraction_high.max()))
    _label_rows(panels, "Bound fraction")
    name_lines(panels[-1], make_room=len(panels) == len(figure.axes))
    details = f"{run_details(results, rows)} 1.0 is the bound; bands: range over jobs."
    return finish(figure, results, details, throttle_label(results, throttled))


_FEW = (EVEN, "contiguous/uneven", "contiguous/balanced", "zigzag/even", BALANCED)


def _small_multiples(
    name: str,
    rows: DataFrame,
    metric: str,
    reference: Callable[[Axes, int], None],
    reference_handles: Sequence[Line2D] = (),
    share_y: bool = True,
    legend: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A panel per length with every strategy's line of `metric`, on a band over its jobs where its range is known.

    `reference(panel, length)` draws the reference of the lines, `reference_handles` name it in the legend.
    """
    lengths = sorted(set(rows.seq_len))
    strategies = ordered(rows.strategy)
    figure, panels, spare = panel_grid(name, len(lengths), panel_height=1.25, share_y=share_y)
    for panel, length in zip(panels, lengths, strict=True):
        reference(panel, length)
        for strategy in reversed(strategies):  # dashes over whole lines: where they coincide, both are seen
            line = series(rows, strategy=strategy, seq_len=length)
            panel.plot(line.percentage, line[metric], **look(strategy).line())
            if f"{metric}_low" in line:
                jobs = line[f"{metric}_low"], line[f"{metric}_high"]
                panel.fill_between(line.percentage, *jobs, color=look(strategy).colour, alpha=0.25, linewidth=0)
        percentage_axis(panel, rows.percentage)
        panel.set_title(f"{tokens(length)} tokens")
    if legend:
        legend_rows(figure, [*by_layout(strategies), reference_handles], spare=spare)
    return figure, panels


def _from_zero(panels: Sequence[Axes], highest: float) -> None:
    """Room for the line at 1.0 and for the highest marker, on the shared y axis."""
    panels[0].set_ylim(0, 1.06 * max(1.0, highest))
    panels[0].yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _label_rows(panels: Sequence[Axes], label: str) -> None:
    for panel in panels:
        if panel.get_subplotspec().is_first_col():
            panel.set_ylabel(label)
