"""Figures of the synthetic grids, drawn once per process, and functions that find their marks and texts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import synthetic
from heteroring import figures
from heteroring.figures.style import paper_style

GRIDS = {"gpu": synthetic.GPU, "tiny": synthetic.TINY}  # the most there is to show, and the least
# The figures with rows in these grids, which have two ranks.
NAMES = tuple(name for name in figures.NAMES if name != "many_ranks")
DPI = 200
# Strategies of the figures of separate experiments.
VARIED = {"ablation": synthetic.ABLATION, "regret": (*synthetic.PUBLISHED, *synthetic.ZIGZAG, *synthetic.NEIGHBOURS)}


@cache
def results_of(grid: synthetic.Grid) -> synthetic.SyntheticResults:
    return synthetic.synthetic_results(grid)


def results(grid: str) -> synthetic.SyntheticResults:
    return results_of(GRIDS[grid])


def shown(name: str, grid: str) -> synthetic.SyntheticResults:
    """The results from which figure `name` is drawn; for those of separate experiments, of the attention call alone."""
    if name not in VARIED:
        return results(grid)
    return results_of(replace(GRIDS[grid], strategies=VARIED[name], modules=("attention",), model=False))


@cache
def plotted(name: str, grid: str) -> Figure:
    """Figure `name` with its data, for tests that look at nothing else; one object for all of them."""
    return figures.draw(name, shown(name, grid))


@cache
def drawn(name: str, grid: str) -> Figure:
    """Figure `name` after its layout, which takes as long again, has been computed."""
    figure = plotted(name, grid)
    figure.set_dpi(DPI)
    with paper_style():
        figure.draw_without_rendering()
    return figure


def panels(figure: Figure) -> list[Axes]:
    """The axes with data, without colour bars and empty slots."""
    return [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]


def panel(figure: Figure, title: str) -> Axes:
    (found,) = [axes for axes in panels(figure) if title in (axes.get_title(), axes.get_title(loc="left"))]
    return found


@cache
def texts(figure: Figure) -> list[Text]:
    """Every text that can be seen; of tick labels, those inside the view."""
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in (*axis.get_ticklabels(minor=False), *axis.get_ticklabels(minor=True))
    }
    visible = [text for text in figure.findobj(Text) if id(text) not in hidden]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axes.axison:
                visible += [label for tick in axis._update_ticks() for label in (tick.label1, tick.label2)]
    return [text for text in visible if text.get_visible() and text.get_text().strip()]


@cache
def box(artist: Text | Legend, figure: Figure) -> Bbox:
    return artist.get_window_extent(figure.canvas.get_renderer())


def line(axes: Axes, label: str):
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return found
