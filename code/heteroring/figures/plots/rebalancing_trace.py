"""`rebalancing_trace`: a chunked prefill while a rank slows down, under fixed, adaptive and oracle splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from heteroring.figures.axes import plain_numbers
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import model_name, tokens
from heteroring.figures.select_rows import MissingRows
from heteroring.figures.style import BASELINE_COLOUR, INK, NOTE_COLOUR, WAITING_COLOUR, look
from heteroring.results.model_rows import CHUNK_SPLITS
from heteroring.results.strategy import BALANCED
from heteroring.results.throttle_words import throttle_words

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_SLOW = {"color": "#F4EBDD", "zorder": 0, "linewidth": 0}
_LINES = {
    "rebalanced": {"color": BASELINE_COLOUR, "linestyle": "-", "linewidth": 1.6},
    "oracle": {"color": INK, "linestyle": (0, (1, 1)), "linewidth": 1.2},
}
_SHOWN = (BALANCED, "rebalanced")


def rebalancing_trace(results: Results) -> Figure:
    """Left: tokens of the last rank in each chunk. Middle and right: each rank's time in each chunk, busy and waiting.

    Of several repetitions, the first is shown. The chunks in which the last rank is slow are shaded.
    """
    if results.chunks.empty:
        raise MissingRows("no prefill was rebalanced")
    rows = results.chunks[results.chunks["repetition"] == 0]
    figure = new_figure("rebalancing_trace", 1.75)
    shares, *times = figure.subplots(1, 1 + len(_SHOWN))
    lines = []
    for split in CHUNK_SPLITS:
        chunks = rows[rows["split"] == split].sort_values("chunk")
        style = {**_style(split), "label": split}
        held = [lens[-1] for lens in chunks["block_lens"]]
        lines += shares.step(chunks["chunk"], held, where="mid", **style)
    shares.set_ylim(bottom=0)
    shares.set_title("last rank's tokens")
    shares.set_ylabel("Tokens of a chunk")
    for panel, split in zip(times, _SHOWN, strict=True):
        _bars(panel, rows[rows["split"] == split].sort_values("chunk"))
        panel.set_title(split)
    highest = max(panel.get_ylim()[1] for panel in times)
    for panel in times:
        panel.set_ylim(0, highest)
    times[0].set_ylabel("Time of a chunk (ms)")
    times[1].tick_params(labelleft=False)
    slow = rows[rows["percentages"] != rows["percentages"].iloc[0]]["chunk"]
    for panel in (shares, *times):
        plain_numbers(panel.yaxis)
        panel.axvspan(slow.min() - 0.5, slow.max() + 0.5, **_SLOW)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.grid(axis="x", visible=False)
    legend_rows(figure, [lines, _legend()])
    at, throttle = min(rows["percentages"].map(min)), rows.iloc[0].throttle
    details = (
        f"Chunks in one prefill of {tokens(rows.iloc[0].prompt_len)} tokens; {model_name(rows)}. Shaded: the last rank "
        f"at {at} % ({throttle_words(throttle).cause})."
    )
    return finish(figure, results, details, "Chunk", results.devices_under(throttle))


def _style(split: str) -> dict:
    if split in _LINES:
        return _LINES[split]
    strategy = look(split)
    return {"color": strategy.colour, "linestyle": strategy.linestyle, "linewidth": 1.0}


def _bars(panel: Axes, chunks: DataFrame) -> None:
    """A bar for each rank and chunk, rank 0's left of the last one's: busy, and above it waiting for the busiest rank.

    The latency of a chunk is the host's, which may run ahead of a GPU; that of all chunks together is not.
    """
    ranks = len(chunks["busy_ms"].iloc[0])
    width = 0.9 / ranks
    for rank in range(ranks):
        places = chunks["chunk"] + (rank - (ranks - 1) / 2) * width
        busy = [each[rank] for each in chunks["busy_ms"]]
        waiting = [max(each) - each[rank] for each in chunks["busy_ms"]]
        panel.bar(places, busy, width, color=_colour(rank, ranks), linewidth=0)
        panel.bar(places, waiting, width, bottom=busy, color=WAITING_COLOUR, edgecolor="#9A9A9A", linewidth=0.3)


def _colour(rank: int, ranks: int) -> str:
    return look(BALANCED).colour if rank == ranks - 1 else NOTE_COLOUR


def _legend() -> list[Patch]:
    return [
        Patch(facecolor=NOTE_COLOUR, label="others busy"),
        Patch(facecolor=_colour(0, 1), label="last rank busy"),
        Patch(facecolor=WAITING_COLOUR, edgecolor="#9A9A9A", linewidth=0.3, label="waiting"),
    ]
