"""`simulated_slow_rank`: how much a single slow rank would slow a ring down, at its front and at its back."""

from __future__ import annotations

from itertools import product, starmap
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heteroring.figures.axes import length_axis, slowdown_axis
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.simulated import cause, platform_of, said
from heteroring.figures.style import INK, LAYOUTS, UNIT_LINE, look
from heteroring.planning.recorded_platform import RecordedPlatform
from heteroring.planning.splits import split
from heteroring.results.strategy import name_of, parts_of
from heteroring.ring.partition import Partition

if TYPE_CHECKING:
    from heteroring.results.results import Results

RANKS = (2, 4, 8, 16, 32, 64)
SEQ_LEN = 2**20
_SPLITS = ("even", "balanced")
_ORDERS = {"slow last": "-", "slow first": (0, (4, 2))}


def simulated_slow_rank(results: Results) -> Figure:
    """Latency over that of an even zigzag over ranks that are all fast, by the number of ranks; a panel per layout.

    One rank is as slow as the profile's lowest percentage, at the back of the sequence (filled, solid) or at its front
    (open, dashed).
    """
    platform = platform_of(results)
    ratios = over_equal(platform)
    figure = new_figure("simulated_slow_rank", 1.45)
    panels = figure.subplots(1, len(LAYOUTS), sharey=True)
    everything = []
    for panel, layout in zip(panels, LAYOUTS, strict=True):
        for name in _SPLITS:
            strategy = name_of(layout, name)
            style = look(strategy)
            for order, linestyle in _ORDERS.items():
                over = ratios[strategy, order]
                face = style.dark if order == "slow last" else "white"
                panel.plot(
                    RANKS, over, color=style.dark, marker=style.marker, markerfacecolor=face, linestyle=linestyle
                )
                everything += over
        panel.axhline(1.0, **UNIT_LINE)
        length_axis(panel, RANKS)
        panel.set_xlabel("Ranks")
        panel.set_title(layout)
    for panel in panels:
        slowdown_axis(panel, everything)
        panel.set_ylabel("Latency ratio" if panel is panels[0] else "")
    looks = {name: look(name_of("zigzag", name)) for name in _SPLITS}
    allocators = [
        Line2D([], [], color=each.dark, marker=each.marker, linestyle="none", label=name)
        for name, each in looks.items()
    ]
    orders = [
        Line2D([], [], color=INK, marker="o", markerfacecolor=face, linestyle=_ORDERS[order], label=order)
        for order, face in (("slow last", INK), ("slow first", "white"))
    ]
    legend_rows(figure, [[*allocators, *orders]])
    words = said(platform).replace(", zigzag", "")
    slow = f"one rank at {platform.cost_model.percentages[0]:g} % ({cause(results)})"
    details = f"{words}, {SEQ_LEN // 2**20}M tokens; {slow}."
    return finish(figure, results, details)


def over_equal(platform: RecordedPlatform) -> dict[tuple[str, str], list[float]]:
    """By strategy and order: for each of RANKS, latency with one slow rank over that of an even zigzag without it."""
    slow, fast = platform.cost_model.percentages[0], platform.cost_model.percentages[-1]
    equal = [latency_us(platform, "zigzag/even", (fast,) * ranks) for ranks in RANKS]
    ratios = {}
    for strategy, order in product(starmap(name_of, product(LAYOUTS, _SPLITS)), _ORDERS):
        times = []
        for ranks in RANKS:
            percentages = [fast] * (ranks - 1)
            percentages.insert(0 if order == "slow first" else ranks, slow)
            times.append(latency_us(platform, strategy, tuple(percentages)))
        ratios[strategy, order] = [time / alike for time, alike in zip(times, equal, strict=True)]
    return ratios


def latency_us(platform: RecordedPlatform, strategy: str, percentages: tuple[float, ...]) -> float:
    """Simulated microseconds of a call of SEQ_LEN tokens over ranks at these percentages."""
    layout, name = parts_of(strategy)
    costs = platform.costs(SEQ_LEN, percentages)
    lens = split(name, SEQ_LEN, costs, layout, max(2, platform.multiple))
    return platform.simulate(Partition(layout, lens), percentages).latency_us
