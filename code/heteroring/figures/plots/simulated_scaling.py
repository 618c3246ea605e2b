"""`simulated_scaling`: how splits would scale to many ranks and long sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heteroring.figures.axes import length_axis
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import tokens
from heteroring.figures.simulated import LOOKS, cause, platform_of, said
from heteroring.figures.style import UNIT_LINE, look
from heteroring.planning.recorded_platform import RecordedPlatform
from heteroring.planning.splits import bound, split
from heteroring.results.strategy import name_of
from heteroring.ring.partition import Partition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heteroring.results.results import Results

RANKS = (2, 4, 16, 64, 256, 1024)
LENGTHS = (2**16, 2**18, 2**20, 2**22, 2**24)
AT_LENGTH, AT_RANKS = 2**20, 64


def simulated_scaling(results: Results) -> Figure:
    """Bound fraction of an even, a proportional and a balanced zigzag; by ranks on the left, by length on the right.

    Every other rank is as slow as the profile at its middle percentage, or its lowest where there is no other.
    """
    platform = platform_of(results)
    figure = new_figure("simulated_scaling", 1.4)
    left, right = figure.subplots(1, 2, sharey=True)
    _lines(left, platform, [(ranks, AT_LENGTH) for ranks in RANKS], RANKS)
    _lines(right, platform, [(AT_RANKS, length) for length in LENGTHS], LENGTHS)
    length_axis(left, RANKS)
    length_axis(right, LENGTHS, lambda length: tokens(length) if length < 2**20 else f"{length // 2**20}M")
    left.set_xlabel(f"Ranks, {AT_LENGTH // 2**20}M tokens")
    right.set_xlabel(f"Sequence length (tokens), {AT_RANKS} ranks")
    left.set_ylabel("Bound fraction")
    left.set_ylim(0, 1.08)
    legend_rows(figure, [[Line2D([], [], **_style(name)) for name in LOOKS]])
    at = f"every other rank at {kinds(platform)[1]:g} % ({cause(results)})"
    details = f"{said(platform)}; {at}; beyond the profile's lengths, its edge."
    return finish(figure, results, details)


def _style(name: str) -> dict:
    return look(name_of("zigzag", LOOKS[name])).line() | {"label": f"zigzag, {name}"}


def _lines(panel: Axes, platform: RecordedPlatform, cells: list, x: Sequence[int]) -> None:
    for name in LOOKS:
        fractions = [fraction(platform, name, ranks, length) for ranks, length in cells]
        panel.plot(x, fractions, **_style(name))
    panel.axhline(1.0, **UNIT_LINE)


def kinds(platform: RecordedPlatform) -> tuple[float, float]:
    """The percentages of the fast ranks and of the slow ones."""
    levels = platform.cost_model.percentages
    return levels[-1], min(levels, key=lambda level: abs(level - levels[-1] / 2))


def fraction(platform: RecordedPlatform, name: str, ranks: int, seq_len: int) -> float:
    """The bound over the simulated latency of a zigzag over ranks of two kinds in turn.

    Args:
        platform: The recorded platform.
        name: The split.
        ranks: Number of ranks.
        seq_len: Tokens.

    Returns:
        The bound fraction.
    """
    percentages = tuple(kinds(platform)[rank % 2] for rank in range(ranks))
    costs = platform.costs(seq_len, percentages)
    lens = split(name, seq_len, costs, "zigzag", max(2, platform.multiple))
    return bound(costs, seq_len) / platform.simulate(Partition.zigzag(lens), percentages).latency_us
