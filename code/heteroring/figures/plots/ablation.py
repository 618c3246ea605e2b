"""`ablation`: the speedup of each step from an even split to the fastest ring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from heteroring.figures.axes import milliseconds_axis
from heteroring.figures.bars import name_bars
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import percentages_are, run_details, tokens
from heteroring.figures.select_rows import MissingRows, shown
from heteroring.figures.style import INK, UNIT_LINE, ramp

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results


class Step(NamedTuple):
    """One measured strategy, labelled with its change to the one before."""

    words: str
    strategy: str
    order: str = "slow first"


STEPS = (
    Step("even contiguous, slow last", "contiguous/even:unfused", "slow last"),
    Step("+ slow rank first", "contiguous/even:unfused"),
    Step("+ balanced shares", "contiguous/balanced:untiled.unfused"),
    Step("+ zigzag", "zigzag/balanced:untiled.unfused"),
    Step("+ whole tiles", "zigzag/balanced:unfused"),
    Step("+ fused first step", "zigzag/balanced"),
)
_HEIGHT = 0.44


def ablation(results: Results) -> Figure:
    """Latency over the capacity bound, a panel for each of the ends of percentages, with bars for the ends of lengths.

    Each bar reaches from the time with the steps so far to the time with one more, and shows the speedup, with an
    asterisk where the split leaves a rank without tokens. The first and the last bar reach from the bound to the time
    without and with all steps.
    """
    cells = shown(results.cells)
    cells = cells[(cells.system == "ring") & (cells.condition == "rested") & cells.bound_fraction.notna()]
    cells = cells[cells.strategy.isin({step.strategy for step in STEPS})]
    if not cells.strategy.str.contains(":unfused").any() or not (cells.order == "slow first").any():
        raise MissingRows("no strategy was measured without its fused first step and with the slow rank first")
    first = cells[cells.order == "slow first"]
    percentages, lengths = _ends(first.percentage), _ends(first.seq_len)
    colours = dict(zip(lengths, reversed(ramp(len(lengths))), strict=True))
    figure = new_figure("ablation", 0.9 + 0.22 * (len(STEPS) + 1))
    panels = figure.subplots(1, len(percentages), sharex=True, sharey=True, squeeze=False)[0]
    for panel, percentage in zip(panels, percentages, strict=True):
        for index, length in enumerate(lengths):
            own = cells[(cells.percentage == percentage) & (cells.seq_len == length)]
            _bars(panel, own, _HEIGHT * (index - (len(lengths) - 1) / 2), colours[length])
        panel.axvline(1.0, **UNIT_LINE)
        panel.set_title(f"slow rank at {percentage} %")
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
    name_bars(panels[0], [*(step.words for step in STEPS), "full ring"])
    panels[0].set_xscale("log")
    panels[0].set_xlim(0.9, 2.2 / min(cells.bound_fraction))
    milliseconds_axis(panels[0].xaxis)
    legend_rows(figure, [[Patch(color=colour, label=f"{tokens(length)} tokens") for length, colour in colours.items()]])
    return finish(figure, results, f"{run_details(results, cells)} {percentages_are(results)}", "Latency over bound")


def _ends(values: Iterable[int]) -> list[int]:
    return sorted({min(values), max(values)})


def _bars(panel: Axes, cells: DataFrame, beside: float, colour: tuple) -> None:
    """The bars of one length and percentage, `beside` the middle of their places."""
    rows = {(row.strategy, row.order): row for row in cells.itertuples()}
    found = [(place, rows[step[1:]]) for place, step in enumerate(STEPS) if step[1:] in rows]
    before = 0.0
    for place, row in found:
        value = 1 / row.bound_fraction
        left_out = "*" if 0 in row.block_lens else ""
        text = rf"{before / value:.2f}$\times${left_out}" if before else f"{value:.2f}"
        _bar(panel, place + beside, before or 1.0, value, text, colour)
        before = value
    if before:
        _bar(panel, len(STEPS) + beside, 1.0, before, f"{before:.2f}", colour)


def _bar(panel: Axes, place: float, start: float, end: float, text: str, colour: tuple) -> None:
    panel.barh(place, end - start, left=start, height=_HEIGHT, facecolor=colour, edgecolor="white", linewidth=0.3)
    panel.text(1.03 * max(start, end), place, text, fontsize=7, va="center", color=INK)
