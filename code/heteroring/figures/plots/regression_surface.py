"""`regression_surface`: the fitted formula over length and percentage, with the measurements it was fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from heteroring.allocators.formula import TERMS
from heteroring.figures.axes import length_axis, throughput_unit
from heteroring.figures.canvas import finish, new_figure
from heteroring.figures.captions import profile_details, throttle_label
from heteroring.figures.select_rows import MissingRows, profile_rows
from heteroring.results.strategy import fitted_name

if TYPE_CHECKING:
    from heteroring.results.results import Results

_SIZE_LABELS = {"matmul": "Matrix size n", "attention": "Sequence length (tokens)"}
_STEPS = 120


def regression_surface(results: Results) -> Figure:
    """Filled contours of the formula's throughput, a panel per operator; points carry the measured value's colour.

    Where a point stands out from its surroundings, the formula is wrong. Where the formula is not positive the surface
    is hatched. R2 on the cells fitted, and with one percentage level left out, comes from the model file.
    """
    names = {kind: fitted_name("formula", kind) for kind in _SIZE_LABELS}
    models = {kind: results.fitted_models[name] for kind, name in names.items() if name in results.fitted_models}
    if not models:
        files = ", ".join(f"models/{name}.json" for name in names.values())
        raise MissingRows(f"no fitted formula ({files})")
    figure = new_figure("regression_surface", 2.6)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    positive = True
    for panel, (kind, model) in zip(panels, models.items(), strict=True):
        positive &= _surface(figure, panel, results, kind, model)
        panel.set_title(_title(kind, model))
    panels[0].set_ylabel(throttle_label(results))
    details = " ".join(profile_details(results, kind) for kind in models)
    if not positive:
        details += " Hatched: the formula is not positive."
    return finish(figure, results, details)


def fitted_tflops(model: dict, length, percentage):
    """The formula's value in TFLOP/s, as fitted: nothing is clamped."""
    x = np.log10(length)
    return sum(model["coefficients"][name] * x**i * percentage**j for name, (i, j) in TERMS.items())


def _surface(figure: Figure, panel: Axes, results: Results, kind: str, model: dict) -> bool:
    """Draw one panel; False if some of it had to be hatched."""
    rows = profile_rows(results, kind, "tflops")
    unit, factor = throughput_unit(rows.tflops.max())
    sizes, percentages = sorted(set(rows["size"])), sorted(set(rows.percentage))
    x = np.geomspace(sizes[0] / 1.25, sizes[-1] * 1.25, _STEPS)
    y = np.linspace(max(0.0, percentages[0] - 5.0), percentages[-1] + 5.0, _STEPS)
    fit = factor * fitted_tflops(model, *np.meshgrid(x, y))
    shades = Normalize(0, max(fit.max(), factor * rows.tflops.max()))
    surface = panel.contourf(x, y, fit.clip(0), levels=np.linspace(0, shades.vmax, 25), norm=shades, cmap="viridis")
    surface.set(edgecolor="face", linewidth=0.3)  # closes the hairlines that PDF viewers show between levels
    if (fit <= 0).any():
        panel.contourf(x, y, fit, levels=[fit.min() - 1, 0], colors="white", hatches=["////"])
    panel.scatter(
        rows["size"],
        rows.percentage,
        c=factor * rows.tflops,
        norm=shades,
        cmap="viridis",
        s=22,
        edgecolors="white",
        linewidths=0.8,
    )
    length_axis(panel, sizes)
    panel.set_xlabel(_SIZE_LABELS[kind])
    panel.set_ylim(y[0], y[-1])
    panel.yaxis.set_major_locator(FixedLocator(percentages))
    panel.grid(visible=False)
    bar = figure.colorbar(surface, ax=panel, pad=0.02, aspect=16)
    bar.set_label(f"{unit}, fit and points")
    bar.solids.set(edgecolor="face", linewidth=0.3)
    bar.locator = MaxNLocator(5)
    return bool((fit > 0).all())


def _title(kind: str, model: dict) -> str:
    held_out = model.get("r2_leave_one_percentage_out")
    text = f"{kind}: $R^2$ = {model['r2']:.3f}"
    return text if held_out is None else f"{text} (${held_out:.3f}$ at a held-out percentage)"
