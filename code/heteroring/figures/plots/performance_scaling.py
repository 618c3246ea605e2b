"""`performance_scaling_vs_percentage`: measured speed of a throttled rank against its nominal percentage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from heteroring.figures.axes import percentage_axis
from heteroring.figures.canvas import finish, new_figure
from heteroring.figures.captions import profile_details, throttle_label
from heteroring.figures.select_rows import MissingRows, profile_rows
from heteroring.figures.style import UNIT_LINE, ramp_lines

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_LABELS = {"matmul": "n = {:,}", "attention": "{:,} tokens"}


def performance_scaling_vs_percentage(results: Results) -> Figure:
    """A column per operator (matmul, causal attention), a line per size.

    Above: achieved against nominal speed, both in percent of full speed, with the diagonal. Below: the difference.
    """
    profiles = _profiles(results)
    figure = new_figure("performance_scaling_vs_percentage", 3.7)
    panels = figure.subplots(
        2, len(profiles), sharex=True, sharey="row", squeeze=False, gridspec_kw={"height_ratios": [1.7, 1]}
    )
    for column, (kind, rows) in zip(panels.T, profiles.items(), strict=True):
        above, below = column
        above.plot([0, 100], [0, 100], **UNIT_LINE)
        below.axhline(0, **UNIT_LINE)
        sizes = sorted(set(rows["size"]))
        for size, style in zip(sizes, ramp_lines(len(sizes)), strict=True):
            line = rows[rows["size"] == size]
            style["label"] = _LABELS[kind].format(size)
            above.plot(line.percentage, 100 * line.relative_speed, **style)
            below.plot(line.percentage, 100 * line.relative_speed - line.percentage, **style)
        above.set_title(kind)
        above.legend(loc="best", handlelength=1.3, labelspacing=0.15)
    every = [value for rows in profiles.values() for value in rows.percentage]
    percentage_axis(panels[0, 0], every)
    # Noise, or a rank that clocks higher when throttled, can exceed full speed.
    fastest = max(rows.relative_speed.max() for rows in profiles.values())
    panels[0, 0].set_ylim(0, 108 * max(1.0, fastest))
    panels[0, 0].set_ylabel("Achieved speed (%)")
    panels[1, 0].set_ylabel("Achieved $-$ nominal\n(points)")
    panels[1, 0].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    details = " ".join(profile_details(results, kind) for kind in profiles)
    return finish(figure, results, details, throttle_label(results))


def _profiles(results: Results) -> dict[str, DataFrame]:
    """The profile rows of each kind that was measured at 100 % too; MissingRows if there is none."""
    profiles, reasons = {}, []
    for kind in _LABELS:
        try:
            profiles[kind] = profile_rows(results, kind, "relative_speed")
        except MissingRows as error:
            reasons.append(str(error))
    if not profiles:
        raise MissingRows("; ".join(reasons))
    return profiles
