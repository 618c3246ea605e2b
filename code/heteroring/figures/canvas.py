"""A figure at its real size: panels, legend above, and a line below that says where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log10
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from heteroring.figures.catalog import WIDTH, WIDTH_INCHES
from heteroring.figures.select import shown, throttle
from heteroring.figures.style import NOTE_COLOUR

if TYPE_CHECKING:
    from pandas import Series

    from heteroring.bench.results import Results

_NOTE_POINTS = 7
_LABEL_POINTS = 8
_MARGIN_INCHES = 0.04
_POINTS_PER_INCH = 72

_MODULES = {"attention": "Attention only", "fms": "FMS attention layer"}
# What a percentage is a percentage of, and what imposes it.
_THROTTLES = {
    "mps": ("MPS active threads", "MPS"),
    "green": ("green-context SMs", "green context"),
    "pacing": ("paced speed", "pacing"),
    "none": ("nominal speed", "no throttle"),
}


def new_figure(name: str, height: float) -> Figure:
    """An empty figure as wide as the catalogue says, `height` inches high, with a canvas and no global state."""
    figure = Figure(figsize=(WIDTH_INCHES[WIDTH[name]], height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panel_grid(
    name: str, count: int, *, panel_height: float, share_y: bool = True
) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with `count` small multiples: up to four in a row, five or six in two rows of three, then rows of four.

    Returns (figure, panels, spare): spare slots carry no axes lines and can take a legend.
    """
    columns = 3 if count in (5, 6) else min(count, 4)
    rows = ceil(count / columns)
    figure = new_figure(name, 0.75 + rows * panel_height)
    axes = list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count], axes[count:]


def legend_rows(where: Figure | Axes, rows: Sequence[Sequence], *, spare: Sequence[Axes] = (), **options) -> None:
    """A legend whose lines are `rows` of handles, above the panels, or stacked in the first spare slot."""
    if spare:
        handles = [handle for row in rows for handle in row]
        spare[0].legend(handles=handles, loc="center", ncols=1 if len(handles) < 8 else 2, **options)
        return
    columns = max(len(row) for row in rows)
    blank = Line2D([], [], linestyle="none", label=" ")
    padded = [list(row) + [blank] * (columns - len(row)) for row in rows]
    by_column = [row[column] for column in range(columns) for row in padded]
    where.legend(handles=by_column, loc="outside upper center", ncols=columns, **options)


def finish(figure: Figure, results: Results, details: str, x_label: str = "") -> Figure:
    """Write the shared `x_label` and, below it, platform, device and `details`; keep the panels above both."""
    width, height = figure.get_size_inches()
    note = figure.text(
        _MARGIN_INCHES / width,
        _MARGIN_INCHES / height,
        "",
        fontsize=_NOTE_POINTS,
        color=NOTE_COLOUR,
        va="bottom",
        linespacing=1.1,
        gid="source-note",
    )
    text = f"Platform {results.platform}: {results.device_label}. {details}"
    lines = _wrap(note, text, 0.96 - 2 * _MARGIN_INCHES / width)
    below = (1.25 * _NOTE_POINTS * lines / _POINTS_PER_INCH + _MARGIN_INCHES) / height
    if x_label:
        figure.text(0.5, below, x_label, ha="center", va="bottom", fontsize=_LABEL_POINTS, gid="x-label")
        below += 1.4 * _LABEL_POINTS / _POINTS_PER_INCH / height
    figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
    return figure


def _wrap(artist: Text, text: str, width: float) -> int:
    """Fill `artist` with `text`, broken at spaces to stay within `width` of its figure; return the number of lines.

    A no-break space is no place to break. Renderers space letters differently, by up to 2 %.
    """
    figure = artist.get_figure()
    renderer = figure.canvas.get_renderer()
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        artist.set_text(longer)
        if lines[-1] and artist.get_window_extent(renderer).width > width * figure.bbox.width:
            lines.append(word)
        else:
            lines[-1] = longer
    artist.set_text("\n".join(lines))
    return len(lines)


def run_details(results: Results) -> str:
    """What was measured, in words: the attention's shape, and how the repetitions were summarised."""
    rows = results.measurements
    row = shown(rows[rows.system == "ring"]).iloc[0].to_dict()
    heads = f"{row['heads']}" if row["heads"] == row["kv_heads"] else f"{row['heads']}:{row['kv_heads']}"
    kind = "causal" if row["causal"] else "full"
    return (
        f"{_MODULES[row['module']]}, {kind}, batch {row['batch']}, {heads} heads of {row['head_dim']}, {row['dtype']}; "
        f"slowest rank, {_median_of(results.cells.repetitions)}."
    )


def profile_details(results: Results, kind: str) -> str:
    rows = results.profile[results.profile.kind == kind]
    return f"{kind.capitalize()}, {', '.join(sorted(set(rows['dtype'])))}, {_median_of(rows.repetitions)}."


def _median_of(repetitions: Series) -> str:
    """With no-break spaces, so that the number does not end up alone on a line."""
    return f"median\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{repetitions.min()}"


def throttle_label(results: Results, subject: str = "") -> str:
    """Axis label for the percentage, naming the throttle that was really used and, if given, who is throttled."""
    label = f"{_throttled(results)[0]}{' of the ' if subject else ''}{subject} (%)"
    return label[0].upper() + label[1:]


def percentages_are(results: Results) -> str:
    """A sentence for figures in which the percentages are no axis."""
    return f"Percentages: {_throttled(results)[0]}."


def condition(results: Results, percentage: int) -> str:
    """A panel's title: how unequal its ranks were."""
    if percentage == 100:
        return "every rank at 100 %"
    return f"throttled rank at {percentage} % ({_throttled(results)[1]})"


def _throttled(results: Results) -> tuple[str, str]:
    name = throttle(results)
    if name not in _THROTTLES:
        raise ValueError(f"platform {results.platform}: unknown throttle {name!r}: one of {', '.join(_THROTTLES)}")
    return _THROTTLES[name]


def tokens(length: int) -> str:
    """4096 -> "4K"; lengths that are no multiple of 1024 in full."""
    return f"{length // 1024}K" if length >= 1024 and length % 1024 == 0 else f"{length}"


def percentage_axis(axes: Axes, percentages: Sequence[int], *, every: bool = False) -> None:
    """Ticks where data are. Unless `every`, only the ends and the middle of a long list are labelled."""
    values = sorted(set(percentages))
    labelled = values
    if not every and len(values) > 4:
        middle = min(values, key=lambda value: abs(value - (values[0] + values[-1]) / 2))
        labelled = [values[0], middle, values[-1]]
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_minor_locator(FixedLocator([value for value in values if value not in labelled]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    pad = max(3.0, 0.05 * (values[-1] - values[0]))
    axes.set_xlim(values[0] - pad, values[-1] + pad)


def length_axis(axes: Axes, lengths: Sequence[int], label=tokens) -> None:
    """A base-2 logarithmic x axis with exactly the measured lengths (or sizes) as ticks."""
    values = sorted(set(lengths))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.set_xticklabels([label(value) for value in values])
    axes.set_xlim(values[0] / 1.25, values[-1] * 1.25)


def milliseconds_axis(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis whose data are already drawn: 1, 2, 5 per decade, more where it is short."""
    low, high = axis.get_view_interval()
    decades = log10(high / low)
    if decades < 0.7:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.2 else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    if decades < 2.2:
        axis.set_minor_locator(NullLocator())
