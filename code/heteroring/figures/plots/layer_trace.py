"""`layer_trace`: timeline of each rank in one layer of a language model, with even and with balanced shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from heteroring.figures.axes import spread
from heteroring.figures.canvas import finish, legend_rows, new_figure
from heteroring.figures.captions import condition, model_name, tokens
from heteroring.figures.select_rows import MissingRows, model_cells
from heteroring.figures.style import INK, NOTE_COLOUR, WAITING_COLOUR, look, ordered
from heteroring.results.model_metrics import HELD, came_ms
from heteroring.results.results import slow_last

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_HEIGHT = 0.82
_IDLE_EDGE = {"edgecolor": "#9A9A9A", "linestyle": (0, (2, 1.5)), "linewidth": 0.5}
WAITING = {"facecolor": WAITING_COLOUR, **_IDLE_EDGE}
_AHEAD = {"facecolor": "none", **_IDLE_EDGE}
EXPOSED = {"facecolor": INK, "edgecolor": "none"}


def layer_trace(results: Results) -> Figure:
    """Horizontal bars from each rank's own start of the layer, at the lowest, the middle and the highest percentage.

    Attention is in the strategy's colour and the rest of the layer in a lighter shade of it. Where a rank is held up
    for KV, or for a reader of its own, the time until the other rank is ready is waiting, and the rest is exposed
    transfer. A rank that finishes the layer before the slowest one goes on, and is idle for the difference by the end
    of the prefill.
    """
    if results.trace.empty:
        raise MissingRows("no layer was traced")
    rows = slow_last(results.trace)
    strategies = ordered(rows.strategy)
    ranks = sorted(set(rows["rank"]))
    chosen = spread(rows.percentage)
    figure = new_figure("layer_trace", 0.95 + len(strategies) * (0.1 + 0.17 * len(ranks)))
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for panel, percentage in zip(panels, chosen, strict=True):
        at = rows[rows.percentage == percentage]
        for strategy in strategies:
            _strategy_bars(panel, at[at.strategy == strategy], _places(strategies, strategy, ranks))
        panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        panel.set_xlim(left=0)
        panel.grid(axis="y", visible=False)
        panel.set_title(condition(results, percentage))
    figure.get_layout_engine().set(wspace=0.06)
    _name_ranks(panels[0], strategies, ranks)
    legend_rows(figure, [_legend()])
    model = model_name(model_cells(results, "prefill"))
    details = f"Layer {rows.iloc[0].layer} in one prefill of {tokens(rows.iloc[0].seq_len)} tokens; {model}."
    return finish(figure, results, details, "Time since the rank began the layer (ms)")


def _places(strategies: list[str], strategy: str, ranks: list[int]) -> dict[int, float]:
    return {rank: strategies.index(strategy) * (len(ranks) + 0.7) + place for place, rank in enumerate(ranks)}


def _strategy_bars(panel: Axes, rows: DataFrame, places: dict[int, float]) -> None:
    of_kind = {kind: rows[rows.kind == kind] for kind in ("layer", "block", "ready")}
    ready = of_kind["ready"].set_index("rank").start_ms.to_dict()
    layers = of_kind["layer"].set_index("rank")
    slowest = (layers.stop_ms - layers.start_ms).max()
    for rank, layer in layers.iterrows():
        place, start = places[rank], layer.start_ms

        def bar(begin: float, end: float, style: dict, place=place, start=start) -> None:
            if end > begin:
                panel.barh(place, end - begin, left=begin - start, height=_HEIGHT, **style)

        attention = look(layer.strategy).bar()
        bar(start, layer.stop_ms, {"facecolor": _lighter(attention["facecolor"]), "edgecolor": "none"})
        for call in of_kind["block"][of_kind["block"]["rank"] == rank].itertuples():
            bar(call.start_ms, call.stop_ms, attention)
        for held in rows[rows["kind"].isin(HELD) & (rows["rank"] == rank)].itertuples():
            bar(held.start_ms, came_ms(held, ready), WAITING)
            bar(came_ms(held, ready), held.stop_ms, EXPOSED)
        bar(layer.stop_ms, start + slowest, _AHEAD)


def _lighter(colour) -> tuple[float, ...]:
    """Half way to white."""
    return tuple((1 + channel) / 2 for channel in to_rgb(colour))


def _legend() -> list[Patch]:
    return [
        Patch(facecolor=NOTE_COLOUR, edgecolor="none", label="attention (strategy's colour)"),
        Patch(facecolor=_lighter(NOTE_COLOUR), edgecolor="none", label="rest of the layer"),
        Patch(label="waiting for the other rank", **WAITING),
        Patch(label="exposed transfer", **EXPOSED),
        Patch(label="ahead (idle later)", **_AHEAD),
    ]


def _name_ranks(panel: Axes, strategies: list[str], ranks: list[int]) -> None:
    places = [place for strategy in strategies for place in _places(strategies, strategy, ranks).values()]
    labels = [f"{strategy}  rank {r}" if r == ranks[0] else f"rank {r}" for strategy in strategies for r in ranks]
    panel.set_yticks(places, labels)
    panel.set_ylim(places[-1] + 0.6, -0.6)
    panel.tick_params(axis="y", length=0)
