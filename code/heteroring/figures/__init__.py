"""The paper's figures. `draw` makes one, `save` writes it; both take a name out of NAMES and a platform's Results.
`save_all` writes all of them.

Figures are drawn at the width they have on the page (WIDTH), so that no scaling changes their fonts.
Importing this package imports neither matplotlib nor pandas.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from heteroring.figures.catalog import CATALOG, NAMES, WIDTH, WIDTH_INCHES, entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from heteroring.results.results import Results

__all__ = ["CATALOG", "NAMES", "WIDTH", "WIDTH_INCHES", "check_outputs", "draw", "save", "save_all"]

# The date of creation is left out, so that the same data give the same bytes.
_METADATA = {".pdf": {"CreationDate": None}, ".png": {}}


def draw(name: str, results: Results) -> Figure:
    """Draw a figure, or a note that says what was not measured if that is optional.

    Args:
        name: One of NAMES.
        results: The results of the platform to show.

    Returns:
        The figure.

    Raises:
        ValueError: If the name is unknown, or, naming them, if the rows that the figure shows are missing.
    """
    chosen = entry(name)
    from heteroring.figures.canvas import not_measured
    from heteroring.figures.select_rows import MissingRows
    from heteroring.figures.style import paper_style

    with paper_style():
        try:
            return getattr(import_module(f"{__name__}.plots.{chosen.module}"), name)(results)
        except MissingRows as error:
            if chosen.optional:
                return not_measured(name, results, f"{chosen.optional} on platform {results.platform}.")
            raise MissingRows(f"figure {name} of platform {results.platform}: {error}") from None


def save(name: str, results: Results, *paths: str | os.PathLike[str]) -> None:
    """Draw a figure once, and write it to each path, whole or not at all.

    The paper's captions name platform and device, so a .pdf lacks the line that does so in a .png.

    Args:
        name: One of NAMES.
        results: The results of the platform to show.
        *paths: Files to write: .png at 200 dpi, .pdf for the paper.

    Raises:
        ValueError: For what `draw` refuses, another suffix, no path, or a path that cannot be written.
    """
    targets = [Path(path) for path in paths]
    check_outputs(name, targets)
    _write(draw(name, results), targets)


def save_all(results: Results, folder: str | os.PathLike[str]) -> list[str]:
    """Write every figure, as NAME.png and NAME.pdf.

    A figure whose rows are missing shows the reason instead, and does not keep the others from being drawn.

    Args:
        results: The results of the platform to show.
        folder: The folder to write to.

    Returns:
        The reasons why figures show no data.

    Raises:
        ValueError: For what else `draw` refuses, and for a path that cannot be written.
    """
    from heteroring.figures.canvas import not_measured
    from heteroring.figures.select_rows import MissingRows
    from heteroring.figures.style import paper_style

    reasons = []
    for name in NAMES:
        try:
            figure = draw(name, results)
        except MissingRows as error:
            reasons.append(str(error))
            with paper_style():
                figure = not_measured(name, results, str(error))
        _write(figure, [Path(folder, f"{name}{suffix}") for suffix in _METADATA])
    return reasons


def _write(figure: Figure, targets: Sequence[Path]) -> None:
    from heteroring.figures.canvas import laid_out, without_note
    from heteroring.figures.style import paper_style
    from heteroring.files import atomic_path

    with paper_style():
        for path in sorted(targets, key=lambda path: path.suffix, reverse=True):  # .png first
            if path.suffix == ".pdf" and figure.findobj(lambda artist: artist.get_gid() == "source-note"):
                figure = without_note(figure)
            with atomic_path(path) as temporary, laid_out(figure):
                figure.savefig(temporary, format=path.suffix[1:], metadata=_METADATA[path.suffix])


def check_outputs(name: str, paths: Sequence[Path]) -> None:
    """Raise ValueError unless figure `name` could be saved to `paths`, by their suffixes."""
    if not paths:
        raise ValueError(f"figure {name}: no path to save to")
    for path in paths:
        if path.suffix not in _METADATA:
            raise ValueError(f"figure {name}: cannot write {path}: the suffix must be .pdf or .png")
