"""Selection of the rows that a figure shows, and the error when there are none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from heteroring.results.results import headline, slow_last

if TYPE_CHECKING:
    from pandas import DataFrame

    from heteroring.results.results import Results

_CELL = ["strategy", "seq_len", "percentage"]
_HOMOGENEOUS = "the even run with every rank at 100 % is missing"
_ALONE = "the runs of each rank alone (system alone) are missing"
_REASONS = {
    "slowdown": _HOMOGENEOUS,
    "efficiency": _HOMOGENEOUS,
    "speedup": "the runs with allocator even are missing",
    "bound_ms": _ALONE,
    "bound_fraction": _ALONE,
    "fast_alone_ms": _ALONE,
}


class MissingRows(ValueError):
    """The rows that a figure shows are missing."""


def ring_cells(results: Results, *metrics: str) -> DataFrame:
    """Cells of the project's own ring: one row per strategy, seq_len and percentage.

    Rows in which one of `metrics` is not known are left out; MissingRows, saying why, if none is left.
    """
    rows = headline(results.cells)
    return _known(results, shown(rows[rows.system == "ring"]), metrics, "system ring")


def slow_first(results: Results) -> Results:
    """The results with cells of a slow first rank where figures look for a slow last one; MissingRows without any."""
    if not (results.cells.order == "slow first").any():
        raise MissingRows("no ring was measured with the slow rank first")
    swapped = {"slow first": "slow last", "slow last": "slow first"}
    return replace(results, cells=results.cells.replace({"order": swapped}))


def module_cells(results: Results, module: str, *metrics: str) -> DataFrame:
    """`ring_cells` of one module: `attention`, the call alone, or `fms`, the whole layer."""
    rows = headline(results.cells)
    rows = rows[(rows.system == "ring") & (rows.module == module)]
    return _known(results, rows, metrics, f"module {module}")


def baseline_cells(results: Results) -> DataFrame:
    """Cells of torch's context_parallel; empty where it was not measured."""
    rows = headline(results.cells)
    rows = shown(rows[rows.system == "context_parallel"])
    return rows if rows.empty else _known(results, rows, ("latency_ms",), "system context_parallel")


def model_cells(results: Results, phase: str) -> DataFrame:
    """Cells of a whole language model over the ring, in phase `prefill` or `decode`."""
    rows = slow_last(results.model)
    if rows.empty:
        raise MissingRows("no whole language model was measured")
    rows = rows[(rows.system == "ring") & (rows.phase == phase)]
    return _known(results, rows, ("latency_ms",), f"phase {phase} of a language model")


def _known(results: Results, rows: DataFrame, metrics: tuple[str, ...], what: str) -> DataFrame:
    """The rows in which no metric is NaN; MissingRows if there are none, ValueError if a cell has two."""
    if rows.empty:
        raise MissingRows(f"no measurement of {what}")
    repeated = rows[rows.duplicated(_CELL)]
    if not repeated.empty:
        cell = ", ".join(f"{name} {repeated.iloc[0][name]}" for name in _CELL)
        raise ValueError(f"platform {results.platform}: more than one row for the cell {cell}")
    for metric in metrics:
        rows = rows[rows[metric].notna()]
        if rows.empty:
            reason = _REASONS.get(metric)
            raise MissingRows(f"no row has {metric}" + (f": {reason}" if reason else ""))
    return rows


def shown(rows: DataFrame) -> DataFrame:
    """The rows of the module that figures show: the attention call where it was measured, else the whole layer."""
    attention = rows[rows.module == "attention"]
    return rows if attention.empty else attention


def series(rows: DataFrame, **where) -> DataFrame:
    """The rows with these values, sorted by length and percentage, ready to be joined by a line."""
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows.sort_values(["seq_len", "percentage"])


def per_cell(rows: DataFrame, column: str) -> DataFrame:
    """Columns seq_len, percentage and `column`, which has one value in all strategies of a cell (a reference)."""
    return rows.groupby(["seq_len", "percentage"], as_index=False)[column].median().dropna()


def profile_rows(results: Results, kind: str, *metrics: str) -> DataFrame:
    """Profile of one kind (matmul, attention), sorted; rows without one of `metrics` are left out."""
    rows = results.profile
    rows = rows[rows.kind == kind]
    if rows.empty:
        raise MissingRows(f"no profile of kind {kind}")
    for metric in metrics:
        rows = rows[rows[metric].notna()]
    if rows.empty:
        raise MissingRows(f"no {kind} profile has {', '.join(metrics)}: the profile at 100 % is missing")
    return rows.sort_values(["size", "percentage"])


def throttle(results: Results) -> str:
    """The throttle that was actually used, one of heteroring.throttle.THROTTLES."""
    used = set(results.measurements["throttle"]) if len(results.measurements) else set()
    used = sorted(used - {"none"})
    if len(used) > 1:
        raise ValueError(f"platform {results.platform} mixes the throttles {', '.join(used)}")
    return used[0] if used else str(results.provenance.get("throttle", "none"))
