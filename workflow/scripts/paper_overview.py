"""Draw the paper's first figure: each rank's part of the work and its time, and time over the bound by speed.

python workflow/scripts/paper_overview.py RECORD PUBLISHED SHORT PREDICTED OUTPUT...

An output is overview.pdf or overview.png, or NAME.pdf of another figure, which is drawn of the record.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from claims.evidence import LONG, Evidence
from heteroring.figures import NAMES, WIDTH_INCHES, save
from heteroring.figures.style import ALONE_LINE, INK, WAITING_COLOUR, look, paper_style
from heteroring.files import atomic_path
from heteroring.ring.partition import Partition
from heteroring.ring.workload import score_pairs
from paper.cells import BALANCED, EVEN, UNEVEN, ZIGZAG_EVEN

FAST, SLOW = "#0B55C0", "#E69F00"
SPEED = 0.5
TOKENS = 24
# Layout, tokens of each rank, speed of each rank, and title.
CASES = (
    ("contiguous", (12, 12), (1, SPEED), "even, slow last"),
    ("contiguous", (12, 12), (SPEED, 1), "even, slow first"),
    ("zigzag", (16, 8), (1, SPEED), "zigzag, by speed"),
)
# Time over the bound by the slow rank's speed: name, strategy whose colour it has, slow rank last, closed form.
LINES: tuple[tuple[str, str, bool, Callable], ...] = (
    ("even, slow last", EVEN, True, lambda s: 0.75 * (1 + s) / s),
    ("zigzag, even", ZIGZAG_EVEN, True, lambda s: 0.5 * (1 + s) / s),
    ("even, slow first", EVEN, False, lambda s: (1 + s) * np.maximum(0.25 / s, 0.75)),
    ("by speed, slow last", UNEVEN, True, lambda s: (2 + s) / (1 + s)),
    ("by speed, slow first", UNEVEN, False, lambda s: (1 + 2 * s) / (1 + s)),
    ("zigzag, by speed", BALANCED, True, np.ones_like),
)
# Where each line has its name, between the measured speeds: at which speed, and how far above the line.
PLACES = {
    "even, slow last": (0.145, 1),
    "zigzag, even": (0.16, 1),
    "even, slow first": (0.118, 1),
    "by speed, slow last": (0.12, 0.905),
    "by speed, slow first": (0.147, 1),
    "zigzag, by speed": (0.147, 0.915),
}
SHOWN = {strategy for _, strategy, *_ in LINES}


def overview(evidence: Evidence) -> Figure:
    """The figure: who computes what in each of CASES, and the time of splits by the slow rank's speed."""
    with paper_style():
        figure = Figure(figsize=(WIDTH_INCHES["text"], 2.35), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subfigures(1, 2, width_ratios=(1.0, 1.0))
        for column, case in enumerate(CASES):
            _case(left, column, *case)
        left.supxlabel(r"time over the bound $T^\ast$", fontsize=8)
        _against_speed(right.subplots(), evidence)
    return figure


def _case(figure, column: int, layout: str, lens: tuple, speeds: tuple, title: str) -> None:
    """A triangle of queries by keys, coloured by the rank that computes, above a bar of time for each rank."""
    partition = Partition(layout, lens)
    owner = {int(token): rank for rank in (0, 1) for token in partition.positions(rank)}
    colours = [FAST if speed == 1 else SLOW for speed in speeds]
    triangle = figure.add_subplot(4, len(CASES), (1 + column, 1 + column + 2 * len(CASES)))
    for query in range(TOKENS):
        triangle.barh(query, query + 1, left=0, height=1, color=colours[owner[query]], linewidth=0)
    triangle.set(xlim=(0, TOKENS), ylim=(TOKENS - 0.5, -0.5), aspect="equal", xticks=[], yticks=[], title=title)
    triangle.grid(visible=False)
    for side in ("left", "bottom"):
        triangle.spines[side].set_visible(False)
    if column == 0:
        triangle.set_ylabel("queries")
    triangle.set_xlabel("keys", labelpad=1)
    bars = figure.add_subplot(4, len(CASES), 1 + column + 3 * len(CASES))
    work = score_pairs(partition)
    times = [pairs / speed * sum(speeds) / sum(work) for pairs, speed in zip(work, speeds, strict=True)]
    bars.barh([0, 1], [max(times)] * 2, color=WAITING_COLOUR, height=0.8)
    bars.barh([0, 1], times, color=colours, height=0.8)
    bars.axvline(1, color=INK, linestyle=(0, (1, 1)), linewidth=1.2)
    names = [f"rank {rank}" for rank in (0, 1)] if column == 0 else ["", ""]
    bars.set(xlim=(0, 2.4), ylim=(1.6, -0.6), xticks=[0, 1, 2], yticks=[0, 1], yticklabels=names)
    bars.tick_params(axis="y", length=0)
    bars.grid(visible=False)


def _against_speed(panel: Axes, evidence: Evidence) -> None:
    """Closed forms as lines; measured dots: filled with the slow rank last, open with it first."""
    speeds = np.geomspace(0.085, 1, 200)
    for name, strategy, last, form in LINES:
        colour = look(strategy).dark
        panel.plot(speeds, form(speeds), color=colour, linestyle="-" if last else (0, (4, 2)), linewidth=0.9)
        at, above = PLACES[name]
        _name(panel, name, at, above * float(form(np.array(at))), colour)
    panel.plot(speeds, 1 + speeds, **(ALONE_LINE | {"linewidth": 0.7}))
    _name(panel, "fast rank alone", 0.83, 2.12, ALONE_LINE["color"])
    for strategy, speed, last, over in dots(evidence):
        colour = look(strategy).dark
        panel.plot(speed, over, marker="o", markersize=3.6, linestyle="none", color=colour,
                   markerfacecolor=colour if last else "white")  # fmt: skip
    panel.set(xscale="log", yscale="log", xlim=(0.085, 1.06), ylim=(0.84, 10.5))
    panel.set_xlabel("speed $s$ of the slow rank in attention")
    panel.set_ylabel(r"$T\,/\,T^\ast$ at 65,536 tokens")
    for axis, ticks in ((panel.xaxis, (0.1, 0.2, 0.3, 0.5, 0.7, 1)), (panel.yaxis, (1, 1.5, 2, 3, 5, 8))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def _name(panel: Axes, name: str, speed: float, height: float, colour: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    panel.text(speed, height, name, color=colour, fontsize=7, ha="center", va="center", bbox=box)


def dots(evidence: Evidence) -> list[tuple[str, float, bool, float]]:
    """Strategy, speed of the slow rank, whether it is last, and latency over the bound, as measured.

    The speed is that of the ranks alone in the same jobs.
    """
    rows = evidence.results.cells
    rows = rows[(rows.module == "attention") & (rows.seq_len == LONG) & (rows.condition == "rested")]
    alone = rows[rows.system == "alone"].pivot(index="percentages", columns="strategy", values="latency_ms")
    speeds = (alone.min(axis=1) / alone.max(axis=1)).to_dict()
    ring = rows[(rows.system == "ring") & rows.strategy.isin(SHOWN)]
    return [
        (row.strategy, speeds[row.percentages], row.order != "slow first", 1 / row.bound_fraction)
        for row in ring.itertuples()
    ]


def main(record: str, published: str, short: str, predicted: str, *outputs: str) -> None:
    """Draw the figure from the records to `outputs`."""
    evidence = Evidence.load(*map(Path, (record, published, short, predicted)))
    figure = overview(evidence)
    for output in map(Path, outputs):
        if output.stem in NAMES:
            save(output.stem, evidence.results, output)
            continue
        with paper_style(), atomic_path(output) as temporary:
            dates = {"CreationDate": None} if output.suffix == ".pdf" else {}
            figure.savefig(temporary, format=output.suffix[1:], metadata=dates)


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
