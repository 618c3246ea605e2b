"""`speedup_heatmap`: speedup of uneven over even shards by length and percentage, a panel per layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from heteroring.figures.canvas import finish, new_figure
from heteroring.figures.captions import run_details, throttle_label, tokens
from heteroring.figures.select_rows import MissingRows, ring_cells
from heteroring.figures.style import LAYOUTS
from heteroring.results.strategy import name_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_COLOURS = "RdBu"
_MOST_COLUMNS = 12  # of cells with legible numbers in two panels side by side
_MISSING_COLOUR = "#F0F0F0"


def speedup_heatmap(results: Results) -> Figure:
    """Speedup of uneven over even in each cell: blue is a gain, white 1.0, red a loss; the shade is log-scaled."""
    rows = ring_cells(results, "speedup")
    rows = rows[rows.allocator == "uneven"]
    if rows.empty:
        raise MissingRows("no measurement of allocator uneven, which the figure compares with even")
    layouts = [layout for layout in LAYOUTS if (rows.layout == layout).any()]
    strength = max(1.0, np.abs(np.log2(rows.speedup)).max())
    shades = Normalize(-strength, strength)
    lengths = sorted(set(rows.seq_len))
    columns = len(layouts) if rows.percentage.nunique() <= _MOST_COLUMNS else 1
    count = len(layouts) // columns
    figure = new_figure("speedup_heatmap", 0.6 + count * (0.35 + 0.24 * max(3, len(lengths))))
    panels = figure.subplots(count, columns, sharey=True, squeeze=False).ravel()
    for panel, layout in zip(panels, layouts, strict=True):
        table = rows[rows.layout == layout].pivot(index="seq_len", columns="percentage", values="speedup")
        image = _table(panel, table.reindex(index=lengths), shades)
        panel.set_title(f"{name_of(layout, 'uneven')} over {name_of(layout, 'even')}")
    for panel in panels[::columns]:
        panel.set_ylabel("Tokens")
    bar = figure.colorbar(image, ax=list(panels), pad=0.01, fraction=0.03, aspect=12)
    bar.set_label(r"Speedup ($\times$)")
    ticks = [value for value in range(-8, 9) if abs(value) <= strength]
    bar.set_ticks(ticks, labels=[f"{2.0**value:g}" for value in ticks])
    bar.outline.set_linewidth(0.4)
    return finish(figure, results, run_details(results, rows), throttle_label(results, "throttled rank"))


def _table(panel: Axes, table: DataFrame, shades: Normalize):
    """Draw `table` (lengths x percentages) with its value in each cell; the image, for the colour bar."""
    panel.set_facecolor(_MISSING_COLOUR)
    image = panel.imshow(np.log2(table.to_numpy()), cmap=_COLOURS, norm=shades, aspect="auto")
    for row, column in np.argwhere(table.notna().to_numpy()):
        value = table.iloc[row, column]
        colour = text_colour(image.cmap(shades(np.log2(value))))
        panel.text(
            column,
            row,
            f"{value:.2f}" if value < 9.995 else f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=7,
            color=colour,
        )
    panel.set_xticks(range(table.shape[1]), [f"{percentage}" for percentage in table.columns])
    panel.set_yticks(range(table.shape[0]), [tokens(length) for length in table.index])
    panel.tick_params(length=0)
    panel.grid(visible=False)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)
    return image


def text_colour(background) -> str:
    """Black or white, whichever stands out more from `background` (WCAG 2.1 contrast ratio, at least 4.58)."""
    channels = np.array(to_rgb(background))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"
