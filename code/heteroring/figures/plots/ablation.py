"""`ablation`: what each step from an even split to the fastest ring is worth, and what else was varied."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heteroring.figures.axes import milliseconds_axis
from heteroring.figures.bars import name_bars
from heteroring.figures.canvas import finish, new_figure
from heteroring.figures.captions import percentages_are, run_details, tokens
from heteroring.figures.select_rows import MissingRows, shown
from heteroring.figures.style import INK, UNIT_LINE, look
from heteroring.results.strategy import Strategy

if TYPE_CHECKING:
    from heteroring.results.results import Results


class Bar(NamedTuple):
    """One measured strategy, under what it adds to the one before it, or what is different about it."""

    words: str
    strategy: str
    order: str = "slow first"


STEPS = (
    Bar("even contiguous, slow rank last", "contiguous/even:unfused", "slow last"),
    Bar("+ slow rank first", "contiguous/even:unfused"),
    Bar("+ balanced shares", "contiguous/balanced:untiled.unfused"),
    Bar("+ zigzag", "zigzag/balanced:untiled.unfused"),
    Bar("+ whole tiles", "zigzag/balanced:unfused"),
    Bar("+ fused first step", "zigzag/balanced"),
)
OTHERS = (
    Bar("all of it", "zigzag/balanced"),
    Bar("without the fused first step", "zigzag/balanced:unfused"),
    Bar("the same with p2p messages", "zigzag/balanced:p2p"),
    Bar("contiguous, masked tiles skipped", "contiguous/balanced:portable"),
    Bar("contiguous, masked tiles computed", "contiguous/balanced:masked"),
    Bar("zigzag, masked tiles skipped", "zigzag/balanced:portable"),
    Bar("zigzag, masked tiles computed", "zigzag/balanced:masked"),
    Bar("zigzag, shares by products", "zigzag/lut"),
    Bar("zigzag, by attention at another length", "zigzag/lut:quarter@attention"),
    Bar("zigzag, by attention at its length", "zigzag/lut@attention"),
)


def ablation(results: Results) -> Figure:
    """Latency over the capacity bound, a panel for each of the ends of lengths and percentages.

    Above, each bar reaches from what the steps so far take to what they take with one more, and says how many times
    faster that is. Below, single changes to balanced shards, each from the bound.
    """
    cells = shown(results.cells)
    cells = cells[(cells.system == "ring") & (cells.condition == "rested") & cells.bound_fraction.notna()]
    if not cells.strategy.str.contains(":unfused").any() or not (cells.order == "slow first").any():
        raise MissingRows("no strategy was measured without its fused first step and with the slow rank first")
    cells = cells[cells.order.isin({bar.order for bar in STEPS})]
    over = (1 / cells.set_index(["seq_len", "percentage", "strategy", "order"]).bound_fraction).to_dict()
    bars = [bar for bar in (*STEPS, *OTHERS) if any(key[2:] == (bar.strategy, bar.order) for key in over)]
    first = cells[cells.order == "slow first"]
    figure = new_figure("ablation", 0.9 + 0.17 * len(bars))
    places = list(product(_ends(first.seq_len), _ends(first.percentage)))
    panels = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    for panel, (length, percentage) in zip(panels, places, strict=True):
        _panel(panel, bars, {bar: over.get((length, percentage, bar.strategy, bar.order)) for bar in bars})
        panel.set_title(f"{tokens(length)} tokens, {percentage} %")
    name_bars(panels[0], [bar.words for bar in bars])
    details = f"{run_details(results)} {percentages_are(results)}"
    return finish(figure, results, details, "Latency over bound")


def _ends(values: Iterable[int]) -> list[int]:
    return sorted({min(values), max(values)})


def _panel(panel: Axes, bars: list[Bar], over: dict[Bar, float | None]) -> None:
    before: float | None = None
    for place, bar in enumerate(bars):
        value = over[bar]
        if value is None:
            continue
        step = bar in STEPS and before is not None
        start = before if step else 1.0
        text = rf"{start / value:.2f}$\times$" if step else f"{value:.2f}"
        style = look(Strategy(bar.strategy)).bar()
        panel.barh(place, value - start, left=start, height=0.72, **{**style, "label": None})
        panel.text(1.02 * max(value, start), place, text, fontsize=7, va="center", color=INK)
        before = value
    panel.axvline(1.0, **UNIT_LINE)
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="y", length=0)
    panel.set_xscale("log")
    panel.set_xlim(0.9, 2 * max(value for value in over.values() if value is not None))
    milliseconds_axis(panel.xaxis)
