"""The picture of a plan: each rank's tokens, in rank order, and its busy and waiting time."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from heteroring.figures.catalog import WIDTH_INCHES
from heteroring.figures.style import BOUND_LINE, NOTE_COLOUR, WAITING_COLOUR, paper_style, ramp
from heteroring.files import atomic_path
from heteroring.planning.plan import Plan

_METADATA = {".pdf": {"CreationDate": None}, ".png": {}, ".svg": {"Date": None}}
# Up to how many ranks each rank has a bar of its own and a label.
_LABELLED = 32


def draw_plan(plan: Plan) -> Figure:
    """Tokens of each rank on the left; on the right the time that it is busy, and that it waits until all are done."""
    ranks = [plan.fleet.ranks[rank] for rank in plan.order]
    names = list(dict.fromkeys(rank.name for rank in plan.fleet.ranks))
    colours = dict(zip(names, ramp(len(names)), strict=True))
    places, few = range(len(ranks)), len(ranks) <= _LABELLED
    look = {"color": [colours[rank.name] for rank in ranks], "height": 0.82 if few else 1.0, "linewidth": 0}
    with paper_style():
        figure = Figure(figsize=(WIDTH_INCHES["text"], 1.3 + 0.16 * min(len(ranks), _LABELLED)), layout="constrained")
        FigureCanvasAgg(figure)
        tokens, times = figure.subplots(1, 2, sharey=True)
        tokens.barh(places, plan.block_lens, **look)
        tokens.set_xlabel("Tokens")
        tokens.set_ylim(len(ranks) - 0.4, -0.6)
        if few:
            tokens.set_yticks(places, [f"{place}  {rank.name}" for place, rank in enumerate(ranks)])
        else:
            tokens.set_ylabel("Place in the ring")
        times.barh(places, plan.busy_ms, **look)
        times.barh(places, plan.waiting_ms, left=plan.busy_ms, **look | {"color": WAITING_COLOUR})
        times.axvline(plan.bound_ms, **BOUND_LINE)
        times.set_xlim(0, 1.03 * plan.latency_ms)
        times.set_xlabel("Time (ms), predicted")
        handles = [Patch(facecolor=colours[name], label=name) for name in names]
        handles.append(Patch(facecolor=WAITING_COLOUR, label="waiting"))
        handles.append(times.get_lines()[0])
        figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(handles)))
        figure.text(
            0.01,
            0.01,
            f"{plan.title}: {plan.latency_ms:.1f} ms, {plan.bound_fraction:.3f} of the bound. Predicted, not measured.",
            fontsize=7,
            color=NOTE_COLOUR,
        )
        below = 0.16 / figure.get_size_inches()[1]
        figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
    return figure


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless `path` has a suffix of a format that a picture can have."""
    if Path(path).suffix not in _METADATA:
        raise ValueError(f"cannot draw {path}: the suffix must be {', '.join(_METADATA)}")


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the picture, whole or not at all: .png, .svg or .pdf. Raises ValueError for another suffix."""
    check_picture(path)
    suffix = Path(path).suffix
    figure = draw_plan(plan)
    with paper_style(), atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix[1:], metadata=_METADATA[suffix])
