"""Captions of figures: what was measured, on which devices, under which throttle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heteroring.figures.select_rows import throttle
from heteroring.results.throttle_words import throttle_words

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from heteroring.results.results import Results

MODULES = {"attention": "Attention only", "fms": "FMS attention layer"}


def run_details(results: Results, cells: DataFrame) -> str:
    """A phrase on some cells of one module: the attention's shape, and how the repetitions were summarised."""
    rows = results.measurements
    row = rows[(rows.system == "ring") & (rows.module == cells.iloc[0].module)].iloc[0].to_dict()
    kind = "causal" if row["causal"] else "full"
    return (
        f"{MODULES[row['module']]}, {kind}, batch {row['batch']}, {_heads(row)}, {row['dtype']}; "
        f"slowest rank, {_median_of(cells.repetitions)}."
    )


def model_details(rows: DataFrame) -> str:
    """Which language model the `rows` of the model's table are of, and how its repetitions were summarised."""
    return f"{model_name(rows)}; slowest rank, {_median_of(rows.repetitions)}."


def model_name(rows: DataFrame) -> str:
    """The model of some rows, in words: name, layers, batch, heads and element type."""
    row, batches = rows.iloc[0].to_dict(), " and ".join(map(str, sorted(set(rows["batch"]))))
    return (
        f"{row['architecture']}/{row['variant']} with random weights, {row['layers']} layers, batch {batches}, "
        f"{_heads(row)}, {row['dtype']}"
    )


def _heads(row: dict) -> str:
    """32 heads of 128; 32:8 where they share KV heads."""
    shared = "" if row["heads"] == row["kv_heads"] else f":{row['kv_heads']}"
    return f"{row['heads']}{shared} heads of {row['head_dim']}"


def profile_details(results: Results, kind: str) -> str:
    """A phrase on the profile of a kind: element types, and how repetitions were summarised."""
    rows = results.profile[results.profile.kind == kind]
    return f"{kind.capitalize()}, {', '.join(sorted(set(rows['dtype'])))}, {_median_of(rows.repetitions)}."


def _median_of(repetitions: Series) -> str:
    """With no-break spaces, so that the number does not end up alone on a line."""
    fewest, most = repetitions.min(), repetitions.max()
    words = f"median of {fewest}" if fewest == most else f"median of {fewest} to {most}"
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def throttle_label(results: Results, subject: str = "") -> str:
    """Axis label for the percentage, naming the throttle that was actually used and, if given, who is throttled."""
    label = f"{throttle_words(throttle(results)).share}{' of the ' if subject else ''}{subject} (%)"
    return label[0].upper() + label[1:]


def percentages_are(results: Results) -> str:
    """A sentence for figures in which the percentages are no axis."""
    return f"Percentages: {throttle_words(throttle(results)).share}."


def condition(results: Results, percentage: int) -> str:
    """A panel's title: how unequal its ranks were."""
    if percentage == 100:
        return "every rank at 100 %"
    return f"throttled rank at {percentage} % ({throttle_words(throttle(results)).cause})"


def tokens(length: int) -> str:
    """65536 -> "65,536", as the paper's text has it."""
    return f"{length:,}"
