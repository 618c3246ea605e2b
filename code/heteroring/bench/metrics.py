"""The metrics, one definition each: from repetitions to cells of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean, median

import numpy as np
import pandas as pd

from heteroring.bench.records import Measurement, ProfileRow
from heteroring.bench.repetitions import check_cell, latency_of, listing, strategy_of
from heteroring.ring.work import capacity_bound

CELL = ["platform", "module", "system", "layout", "allocator", "strategy", "seq_len", "percentage"]
PROFILE_CELL = ["platform", "kind", "size", "percentage", "dtype"]


def measurement_table(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """One row a repetition, the columns those of Measurement, with `strategy` and `percentage` beside them.

    percentage is that of the slowest rank; strategy is "layout/allocator", and "alone/rank0" for rank 0
    alone.
    """
    table = pd.DataFrame([asdict(row) for row in measurements])
    table["percentage"] = table["percentages"].map(min)
    table["strategy"] = [strategy_of(row) for row in measurements]
    return table


def cells(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """One row for each platform, module, system, strategy, length and percentage.

    latency_ms is the median over repetitions of the slowest rank's time, with its 20th and 80th percentile;
    busy_ms has the median of each rank. T being that latency,

    - slowdown = T / T_homogeneous, of the even ring in the same layout with every rank at 100 %;
    - efficiency = 1 / slowdown;
    - speedup = T_even / T, of the even ring in the same layout at the same percentages;
    - bound_ms = 1 / sum_r(1 / T_r), T_r the time of rank r alone in the same job, and bound_fraction =
    bound_ms / T;
    - fast_alone_ms = min_r T_r;
    - imbalance = the largest of busy_ms over their mean, of the attention call: in a layer a rank may count as busy
    while its kernel waits for a peer's projections (`Measurement`).

    A metric whose reference was not measured is NaN, and so is the imbalance of a layer. Raises ValueError if
    measurements of different shapes, dtypes or throttles are mixed, or if a cell's repetitions differ in block_lens or
    occur twice.
    """
    table = measurement_table(measurements)
    for column in Measurement.identity.alike:
        if table.groupby("module")[column].nunique().gt(1).any():
            raise ValueError(f"measurements differ in {column}: {listing(table[column])}")
    rows = pd.DataFrame([_cell(key, group) for key, group in table.groupby(CELL, sort=False)])
    return _against_references(rows)


def _cell(key: tuple, group: pd.DataFrame) -> dict[str, object]:
    named = dict(zip(CELL, key, strict=True))
    check_cell(group, named, ("percentages", "block_lens", "clamped", "bytes_moved"))
    first = group.iloc[0]
    busy = tuple(median(times) for times in zip(*group["busy_ms"], strict=True))
    of_computing = any(busy) and named["module"] == "attention"
    return named | {
        "percentages": first["percentages"],
        "block_lens": first["block_lens"],
        "clamped": first["clamped"],
        **latency_of(group),
        "busy_ms": busy,
        "imbalance": max(busy) / mean(busy) if of_computing else np.nan,
        "bytes_moved": first["bytes_moved"],
    }


def _against_references(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the metrics that relate a cell to other cells."""
    ring = rows[(rows["system"] == "ring") & (rows["allocator"] == "even")]
    even = ring.set_index(["module", "layout", "seq_len", "percentages"])["latency_ms"].to_dict()
    alone = {
        key: dict(zip(group["strategy"], group["latency_ms"], strict=True))
        for key, group in rows[rows["system"] == "alone"].groupby(["module", "seq_len", "percentages"])
    }

    def references(row: pd.Series) -> pd.Series:
        full_speed = (100,) * len(row["percentages"])
        times = alone.get((row["module"], row["seq_len"], row["percentages"]), {})
        complete = len(times) == len(row["percentages"])
        return pd.Series(
            {
                "homogeneous": even.get((row["module"], row["layout"], row["seq_len"], full_speed), np.nan),
                "even": even.get((row["module"], row["layout"], row["seq_len"], row["percentages"]), np.nan),
                "bound_ms": capacity_bound(list(times.values())) if complete else np.nan,
                "fast_alone_ms": min(times.values()) if complete else np.nan,
            }
        )

    reference = rows.apply(references, axis=1)
    return rows.assign(
        slowdown=rows["latency_ms"] / reference["homogeneous"],
        efficiency=reference["homogeneous"] / rows["latency_ms"],
        speedup=reference["even"] / rows["latency_ms"],
        bound_ms=reference["bound_ms"],
        bound_fraction=reference["bound_ms"] / rows["latency_ms"],
        fast_alone_ms=reference["fast_alone_ms"],
    )[[*CELL, *_VALUES]]


_VALUES = [
    "percentages",
    "block_lens",
    "clamped",
    "repetitions",
    "latency_ms",
    "latency_p20_ms",
    "latency_p80_ms",
    "busy_ms",
    "slowdown",
    "efficiency",
    "speedup",
    "bound_ms",
    "bound_fraction",
    "imbalance",
    "fast_alone_ms",
    "bytes_moved",
]


def profile_cells(rows: Sequence[ProfileRow]) -> pd.DataFrame:
    """One row for each operator, size and percentage.

    latency_ms is the median over repetitions, tflops the speed at that median, and relative_speed that speed
    over the speed at 100 % (NaN if that was not measured). Raises ValueError if profiles of several dtypes,
    shapes or throttles are mixed, or if a repetition occurs twice.
    """
    table = pd.DataFrame([asdict(row) for row in rows])
    for column in ProfileRow.identity.alike:
        # As `read_rows` has it: a rank at full speed may be measured without what throttles others.
        free = (column == "throttle") & (table["throttle"] == "none") & (table["percentage"] == 100)
        if table[~free].groupby("kind")[column].nunique().gt(1).any():
            raise ValueError(f"profile rows differ in {column}: {listing(table[column])}")
    if table.duplicated(["kind", "size", "percentage", "repetition"]).any():
        raise ValueError("a repetition of the profile occurs twice: two files hold the same percentage")
    table["flops"] = table["tflops"] * table["latency_ms"]
    grouped = table.groupby(PROFILE_CELL, sort=True)
    cells = grouped.agg(
        repetitions=("latency_ms", "size"),
        latency_ms=("latency_ms", "median"),
        latency_p20_ms=("latency_ms", lambda x: x.quantile(0.2)),
        latency_p80_ms=("latency_ms", lambda x: x.quantile(0.8)),
        flops=("flops", "median"),
    ).reset_index()
    cells["tflops"] = cells.pop("flops") / cells["latency_ms"]
    full = cells[cells["percentage"] == 100].set_index(["kind", "size"])["tflops"].to_dict()
    at_full = [full.get(key, np.nan) for key in zip(cells["kind"], cells["size"], strict=True)]
    return cells.assign(relative_speed=cells["tflops"] / np.array(at_full))
