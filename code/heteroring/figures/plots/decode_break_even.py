"""`decode_break_even`: how much faster a model decodes over the ring than on one rank, by tokens cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from heteroring.figures.axes import length_axis, name_lines
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import model_details, percentages_are
from heteroring.figures.select_rows import MissingRows
from heteroring.figures.style import INK, NOTE_COLOUR, UNIT_LINE, WAITING_COLOUR, ramp
from heteroring.results.model_metrics import decode_gains
from heteroring.results.model_rows import DECODED
from heteroring.results.results import slow_last

if TYPE_CHECKING:
    from heteroring.results.results import Results

_MARKERS = "osD^v"


def decode_break_even(results: Results) -> Figure:
    """The time of the fastest rank alone over the ring's, against the tokens cached of all sequences.

    A colour for each percentage of the slowest rank, a marker for each number of sequences: filled for the fewest. The
    ring breaks even where a line crosses 1.
    """
    gains = decode_gains(slow_last(results.model), DECODED)
    if gains.empty:
        raise MissingRows("no decode was measured over the ring and on each rank alone")
    percentages, batches = sorted(set(gains.percentage)), sorted(set(gains.batch))
    figure = new_figure("decode_break_even", 2.1)
    panel = figure.subplots()
    for percentage, colour in zip(percentages, ramp(len(percentages)), strict=True):
        for batch, line in gains[gains.percentage == percentage].sort_values("tokens").groupby("batch"):
            [drawn] = panel.plot(line.tokens, line.gain, color=colour, **_look(batches, batch))
        drawn.set_label(f"{percentage} %")
    length_axis(panel, gains.tokens)
    panel.set_ylim(0.9 * min(1.0, gains.gain.min()), 1.08 * max(1.0, gains.gain.max()))
    panel.set_ylabel("Speedup over one rank")
    panel.axhline(1.0, **UNIT_LINE)
    panel.axhspan(panel.get_ylim()[0], 1.0, color=WAITING_COLOUR, linewidth=0, zorder=0)
    words = {"transform": panel.transAxes, "fontsize": 7, "color": NOTE_COLOUR}
    panel.text(0.02, 0.97, "ring faster", va="top", **words)
    panel.text(0.98, 0.03, "one rank faster", ha="right", **words)
    name_lines(panel, make_room=True, least=0.07)
    handles = [Line2D([], [], color=INK, label=_sequences(batch), **_look(batches, batch)) for batch in batches]
    legend_rows(figure, [handles])
    details = f"{model_details(gains)} {percentages_are(results)}"
    return finish(figure, results, details, "Tokens cached, of all sequences")


def _look(batches: list[int], batch: int) -> dict:
    """Keyword arguments, without colour, for the line of `batch` sequences."""
    index = batches.index(batch)
    marker = {"marker": _MARKERS[index % len(_MARKERS)], "markersize": 4}
    return marker | ({"linestyle": "--", "markerfacecolor": "white"} if index else {"linestyle": "-"})


def _sequences(batch: int) -> str:
    return "1 sequence" if batch == 1 else f"{batch} sequences"
