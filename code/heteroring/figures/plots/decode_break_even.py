"""`decode_break_even`: where the ring decodes faster than one rank, by tokens cached and sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from heteroring.figures.axes import length_axis, spread
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import condition, model_details
from heteroring.figures.select_rows import MissingRows
from heteroring.figures.style import INK, look
from heteroring.results.model_metrics import break_even_tokens, decode_gains
from heteroring.results.model_rows import DECODED
from heteroring.results.results import slow_last

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results


BREAK_EVEN = "predicted break-even"


def decode_break_even(results: Results) -> Figure:
    """Marks are measured, a panel per throttle setting, and beside them how many times faster the ring is than the
    fastest rank alone: filled where it is faster. The line is the break-even by the memory model (`break_even_tokens`)
    where enough limits were measured, unless by that model the ring wins, or loses, whatever is cached.
    """
    gains = decode_gains(slow_last(results.model), DECODED)
    if gains.empty:
        raise MissingRows("no decode was measured over the ring and on each rank alone")
    chosen = spread(gains.percentage)
    figure = new_figure("decode_break_even", 2.3)
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for panel, percentage in zip(panels, chosen, strict=True):
        _panel(panel, gains[gains.percentage == percentage])
        length_axis(panel, gains.seq_len, _thousands)
        panel.set_title(condition(results, percentage))
    batches = sorted(set(gains.batch))
    panels[0].set_yscale("log", base=2)
    panels[0].set_ylim(batches[0] / 2, batches[-1] * 2.5)
    panels[0].yaxis.set_major_locator(FixedLocator(batches))
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("Sequences")
    legend_rows(
        figure, [_legend(predicted=any(line.get_label() == BREAK_EVEN for panel in panels for line in panel.lines))]
    )
    details = f"{model_details(gains)} Numbers: time of the fastest rank alone over the ring's."
    return finish(figure, results, details, "Tokens cached of each sequence")


def _panel(panel: Axes, gains: DataFrame) -> None:
    colour = look(DECODED).dark
    for won, cells in gains.groupby(gains.gain > 1):
        face = colour if won else "white"
        panel.plot(cells.seq_len, cells.batch, "o", color=colour, markerfacecolor=face, label=_outcome(won))
    for row in gains.itertuples():
        where = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        panel.annotate(f"{row.gain:.2f}", (row.seq_len, row.batch), **where)
    tokens = break_even_tokens(gains)
    if 0 < tokens < float("inf"):
        lengths = [gains.seq_len.min() / 2, gains.seq_len.max() * 2]
        panel.plot(lengths, [tokens / length for length in lengths], color=INK, linewidth=0.8, label=BREAK_EVEN)


def _outcome(won: bool) -> str:
    return "ring faster" if won else "one rank faster"


def _legend(predicted: bool) -> list[Line2D]:
    colour = look(DECODED).dark
    marks = [
        Line2D([], [], color=colour, marker="o", linestyle="none", markerfacecolor=face, label=_outcome(won))
        for won, face in ((True, colour), (False, "white"))
    ]
    return [*marks, *([Line2D([], [], color=INK, linewidth=0.8, label=BREAK_EVEN)] if predicted else [])]


def _thousands(length: int) -> str:
    """16384 -> "16K": five lengths with all of their digits do not fit a panel."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)
