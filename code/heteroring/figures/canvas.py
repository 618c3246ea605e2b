"""The canvas of a figure at its printed size: panels, a legend above, and a line that names the data's source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from heteroring.figures.catalog import WIDTH, WIDTH_INCHES
from heteroring.figures.style import NOTE_COLOUR

if TYPE_CHECKING:
    from heteroring.results.results import Results

_NOTE_POINTS = 7
_LABEL_POINTS = 8
_MARGIN_INCHES = 0.04
_POINTS_PER_INCH = 72
_LAYOUT_DPI = 200


def new_figure(name: str, height: float) -> Figure:
    """An empty figure as wide as the catalog says, with a canvas and no global state.

    Args:
        name: Name of the figure.
        height: Height in inches.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(WIDTH_INCHES[WIDTH[name]], height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panel_grid(
    name: str, count: int, *, panel_height: float, share_y: bool = True
) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure of small multiples: up to four in a row, five or six in two rows of three, then rows of four.

    Args:
        name: Name of the figure.
        count: Number of panels.
        panel_height: Height of a panel in inches.
        share_y: Whether panels share their y axis.

    Returns:
        (figure, panels, spare); spare slots carry no axes lines and can take a legend.
    """
    columns = 3 if count in (5, 6) else min(count, 4)
    rows = ceil(count / columns)
    figure = new_figure(name, 0.75 + rows * panel_height)
    axes = list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count], axes[count:]


def legend_rows(figure: Figure, rows: Sequence[Sequence], *, spare: Sequence[Axes] = (), **options) -> None:
    """Draw a legend above the panels, or stacked in the first spare slot.

    Args:
        figure: The figure.
        rows: Handles of each line of the legend; empty lines are left out.
        spare: Slots without a panel.
        **options: Further options of matplotlib's legend.
    """
    rows = [row for row in rows if row]
    if spare:
        handles = [handle for row in rows for handle in row]
        spare[0].legend(handles=handles, loc="center", ncols=1 if len(handles) < 8 else 2, **options)
        return
    columns = max(len(row) for row in rows)
    blank = Line2D([], [], linestyle="none", label=" ")
    padded = [list(row) + [blank] * (columns - len(row)) for row in rows]
    by_column = [row[column] for column in range(columns) for row in padded]
    figure.legend(handles=by_column, loc="outside upper center", ncols=columns, **options)


def in_lines(handles: Sequence, most: int) -> list[list]:
    """The handles in as few lines as hold them, `most` at most in each, evenly filled."""
    count = -(-len(handles) // most)
    each = -(-len(handles) // count)
    return [list(handles[start : start + each]) for start in range(0, len(handles), each)]


def finish(figure: Figure, results: Results, details: str, x_label: str = "", devices: str = "") -> Figure:
    """Write the shared x label and the caption below the panels.

    Args:
        figure: The figure.
        results: Measurements of the platform that the caption names.
        details: Further words of the caption.
        x_label: Label of the x axes; empty for none.
        devices: The devices, in words; those of `results` if empty.

    Returns:
        The figure.
    """
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
    text = f"Platform {results.platform}: {devices or results.device_label}. {details}".rstrip()
    lines = _wrap(note, text, 0.96 - 2 * _MARGIN_INCHES / width)
    if x_label:
        figure.text(0.5, 0, x_label, ha="center", va="bottom", fontsize=_LABEL_POINTS, gid="x-label")
    _keep_free(figure, (1.25 * _NOTE_POINTS * lines / _POINTS_PER_INCH + _MARGIN_INCHES) / height)
    return figure


def without_note(figure: Figure) -> Figure:
    """The figure without the line that `finish` wrote, for a page whose caption says the same."""
    [note] = [text for text in figure.texts if text.get_gid() == "source-note"]
    note.remove()
    _keep_free(figure, _MARGIN_INCHES / figure.get_figheight())
    return figure


@contextmanager
def laid_out(figure: Figure) -> Iterator[None]:
    """Lay the figure out now, and not again within the context.

    Otherwise `savefig` draws the figure one more time, to lay it out.
    """
    engine, dpi = figure.get_layout_engine(), figure.dpi
    figure.dpi = _LAYOUT_DPI
    if figure.axes[0].get_subplotspec():
        engine.execute(figure)
    figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)
        figure.dpi = dpi


def _keep_free(figure: Figure, below: float) -> None:
    """Put the shared label above the part `below` of the figure, and the panels above both."""
    for label in figure.texts:
        if label.get_gid() == "x-label":
            label.set_y(below)
            below += 1.4 * _LABEL_POINTS / _POINTS_PER_INCH / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))


def not_measured(name: str, results: Results, words: str) -> Figure:
    """A figure of `words` alone, for a platform without the measurements that figure `name` shows."""
    figure = new_figure(name, 0.6)
    figure.add_axes((0, 0, 1, 1)).set_axis_off()  # a notebook shows no figure without axes
    said = figure.text(0.5, 0.66, "", ha="center", va="center", fontsize=_LABEL_POINTS)
    _wrap(said, words, 0.96)
    return finish(figure, results, "")


def _wrap(artist: Text, text: str, width: float) -> int:
    """Fill `artist` with `text`, broken at spaces to stay within `width` of its figure; return the number of lines.

    Lines are not broken at no-break spaces. Renderers space letters differently, by up to 2 %.
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
