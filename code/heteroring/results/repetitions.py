"""Shared metrics of calls and of models: latency over repetitions, and the references of speedup and bound fraction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Protocol

import numpy as np
import pandas as pd

from heteroring.results.strategy import alone_name, name_of
from heteroring.ring.bounds import capacity_bound, two_kind_bound


class SplitRow(Protocol):
    """A row of something measured under one split of a prompt."""

    @property
    def system(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def allocator(self) -> str: ...
    @property
    def model_source(self) -> str: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def block_lens(self) -> tuple[int, ...]: ...


def strategy_of(row: SplitRow) -> str:
    """The label of `row`: the name of its strategy, or alone/rank0 for rank 0 alone, fms/rank0 for FMS's generate."""
    if row.system in ("alone", "sdpa", "fms"):
        return alone_name(row.block_lens.index(row.seq_len), "fms" if row.system == "fms" else "alone")
    return name_of(row.layout, row.allocator, row.model_source)


def check_cell(group: pd.DataFrame, cell: dict[str, object]) -> None:
    """Raise ValueError, naming `cell`, if its repetitions, of one job or of several, were not of the same call."""
    for column in ("percentages", "block_lens", "clamped", "block", "transport"):
        if len(set(group[column])) > 1:
            where = ", ".join(f"{name} {value}" for name, value in cell.items())
            values = ", ".join(map(str, group[column].unique()))
            raise ValueError(f"repetitions differ in {column} ({values}): {where}")


def latency_of(group: pd.DataFrame) -> dict[str, object]:
    """How many jobs and repetitions there are, the median of their latency, and its 20th and 80th percentile.

    latency_low_ms and latency_high_ms are the lowest and the highest median of a job; job_medians has all of them.
    """
    low, middle, high = np.quantile(group["latency_ms"].to_numpy(), (0.2, 0.5, 0.8))
    of_jobs: dict[int, list[float]] = defaultdict(list)
    for job, ms in zip(group["job"], group["latency_ms"], strict=True):
        of_jobs[job].append(ms)
    medians = {job: median(of_jobs[job]) for job in sorted(of_jobs)}
    return {
        "jobs": len(medians),
        "repetitions": len(group),
        "latency_ms": middle,
        "latency_p20_ms": low,
        "latency_p80_ms": high,
        "latency_low_ms": min(medians.values()),
        "latency_high_ms": max(medians.values()),
        "job_medians": medians,
    }


Alone = dict[tuple, list[dict[int, float]]]


def alone_times(cells: pd.DataFrame, where: Sequence[str]) -> Alone:
    """The median time of each rank alone in each job.

    Args:
        cells: Cells, with column job_medians.
        where: Columns that tell references apart.

    Returns:
        Milliseconds of the ranks, in rank order, by system (`alone` or `sdpa`) and the values of `where`.
    """
    rows = cells[cells["system"].isin(["alone", "sdpa"])]
    return {key: list(group["job_medians"]) for key, group in rows.groupby(["system", *where], sort=False)}


def references(cells: pd.DataFrame, where: Sequence[str], attention: Alone | None = None) -> pd.DataFrame:
    """The references of each cell: bounds, and times of equal ranks and of even shards.

    `homogeneous` and `even` are latencies in ms of the even ring in the same layout, with every rank at 100 % and at
    the cell's percentages. bound_ms, bound_fraction with the lowest and the highest of a job, and fast_alone_ms are of
    each rank alone in the same job, and medians over jobs. PyTorch's context_parallel is judged by its own kernel, each
    rank alone in system `sdpa`. NaN where a reference was not measured.

    Args:
        cells: Cells, with the median latency of each job in column job_medians.
        where: Columns in which a reference agrees with its cell, percentages the last.
        attention: The part of each rank's time alone that is attention, by the keys of `alone_times`, for the
            `two_kind_bound`; None for the capacity bound.

    Returns:
        A row of references for each cell.
    """
    ring = cells[(cells["system"] == "ring") & (cells["allocator"] == "even")]
    even = ring.set_index([*where, "layout"])["latency_ms"].to_dict()
    alone, attention = alone_times(cells, where), attention or {}

    def of_cell(cell: dict[str, Any]) -> dict[str, float]:
        *place, percentages = (cell[name] for name in where)
        key = ("sdpa" if cell["system"] in ("sdpa", "context_parallel") else "alone", *place, percentages)
        ranks, parts, medians = alone.get(key, []), attention.get(key, []), cell["job_medians"]
        complete = [job for job in medians if all(job in rank for rank in ranks)] * (len(ranks) == len(percentages))
        bounds = {
            job: _bound([rank[job] for rank in ranks], [part.get(job, 0.0) for part in parts]) for job in complete
        }
        fractions = [bounds[job] / medians[job] for job in complete]
        return {
            "homogeneous": even.get((*place, (100,) * len(percentages), cell["layout"]), np.nan),
            "even": even.get((*place, percentages, cell["layout"]), np.nan),
            "bound_ms": _median(bounds.values()),
            "bound_fraction": _median(fractions),
            "bound_fraction_low": min(fractions, default=np.nan),
            "bound_fraction_high": max(fractions, default=np.nan),
            "fast_alone_ms": _median(min(rank[job] for rank in ranks) for job in complete),
        }

    return pd.DataFrame(map(of_cell, cells.to_dict("records")), index=cells.index)


def _bound(alone: Sequence[float], attention: Sequence[float]) -> float:
    """The two-kind bound where the attention of every rank is known, else the capacity bound."""
    if len(attention) != len(alone) or not all(attention):
        return capacity_bound(alone)
    parts = list(map(min, alone, attention))
    return two_kind_bound(parts, [whole - part for whole, part in zip(alone, parts, strict=True)])


def _median(values: Iterable[float]) -> float:
    """The median; NaN if there are no values."""
    values = list(values)
    return median(values) if values else np.nan
