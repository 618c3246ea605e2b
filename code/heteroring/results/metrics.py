"""The metrics of the attention call and layer, one definition each, from repetitions to cells of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

import numpy as np
import pandas as pd

from heteroring.results.rank_percentages import order_of
from heteroring.results.repetitions import alone_times, check_cell, latency_of, references, strategy_of
from heteroring.results.rows import Measurement, ProfileRow
from heteroring.results.strategy import BALANCED, CALL_VARIANTS, variants_of

CELL = [
    "platform",
    "module",
    "system",
    "layout",
    "allocator",
    "strategy",
    "condition",
    "seq_len",
    "percentage",
    "order",
]
PROFILE_CELL = ["platform", "kind", "size", "percentage", "dtype"]


def measurement_table(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """One row per repetition, the columns those of Measurement, with `strategy`, `percentage` and `order` beside them.

    percentage is that of the slowest rank, order what `order_of` calls the ranks' order. strategy is the strategy's
    name (`heteroring.results.strategy`), and "alone/rank0" for rank 0 alone.

    Args:
        measurements: Rows of one job, or rows that `read_rows` read together.

    Returns:
        The table.
    """
    table = pd.DataFrame([vars(row) for row in measurements])
    table["percentage"] = table["percentages"].map(min)
    table["order"] = table["percentages"].map(order_of)
    table["strategy"] = [strategy_of(row) for row in measurements]
    return table


def cells(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """One row for each platform, module, system, strategy, condition, length, percentage and rank order.

    latency_ms is the median over the repetitions of all jobs of the slowest rank's time, with its 20th and 80th
    percentile; latency_low_ms and latency_high_ms are the lowest and the highest of the medians of its `jobs`.
    busy_ms has the median of each rank. With T the latency, and all times of the same condition,

    - slowdown = T / T_homogeneous, of the even ring in the same layout with every rank at 100 %;
    - efficiency = 1 / slowdown;
    - speedup = T_even / T, of the even ring in the same layout at the same percentages, in the same order;
    - bound_ms = 1 / sum_r(1 / T_r), T_r the time of rank r alone in the same job, and bound_fraction = bound_ms over
      the latency in that job: of both the median over jobs, and of the latter the lowest and the highest too. A layer
      is two kinds of work: where its attention was measured alone in a job of the same number, bound_ms is the bound on
      splits of both kinds (`two_kind_bound`). context_parallel is judged by T_r of its own kernel;
    - fast_alone_ms = min_r T_r, the median over jobs;
    - regret = T / T_best - 1, of the ring, T_best being the least latency of any split measured in the same layout at
      the same percentages, in the same order, by the same kernel and transport. Here T is the median over the
      repetitions of all strategies that make the same split, whose calls are the same. Where splits around the balanced
      ones were measured (`Strategy`, "+5"), T_best is that of the best split; as the least of several medians, it is
      slightly too low;
    - imbalance = the largest of busy_ms over their mean, of the attention call: in a layer a rank may count as busy
      while its kernel waits for a peer's projections (`Measurement`);
    - exposed = the part of T in which the busiest rank does not compute, of the attention call: transfers that compute
      does not hide, waits for ranks that are behind, launches. Waits within a fused first step are not included.

    A metric whose reference was not measured is NaN, and so are the last two of a layer.

    Args:
        measurements: Rows of one job, or rows that `read_rows` read together.

    Returns:
        The cells.

    Raises:
        ValueError: If a cell's repetitions differ in block_lens, backend or transport.
    """
    table = measurement_table(measurements)
    where = ["module", "condition", "seq_len", "percentages"]
    table["regret"] = _regret(table, [*where, "layout"])
    rows = pd.DataFrame([_cell(key, group) for key, group in table.groupby(CELL, sort=False)])
    within_layer = {
        (system, "fms", *place): ranks
        for (system, module, *place), ranks in alone_times(rows, where).items()
        if module == "attention"
    }
    found = references(rows, where, within_layer)
    return rows.assign(
        slowdown=rows["latency_ms"] / found["homogeneous"],
        efficiency=found["homogeneous"] / rows["latency_ms"],
        speedup=found["even"] / rows["latency_ms"],
        **found[[name for name in found if name in _VALUES]],
    )[[*CELL, *_VALUES]]


def _regret(table: pd.DataFrame, where: list[str]) -> pd.Series:
    """The regret of each repetition's split among those that agree in the columns `where`, by the index of `table`."""
    ring = table[(table["system"] == "ring") & ~table["allocator"].map(_calls_otherwise)]
    medians = ring.groupby([*where, "block_lens"])["latency_ms"].transform("median")
    return medians / ring.assign(medians=medians).groupby(where)["medians"].transform("min") - 1


def _calls_otherwise(allocator: str) -> bool:
    return bool(set(variants_of(allocator)) & set(CALL_VARIANTS))


def _cell(key: tuple, group: pd.DataFrame) -> dict[str, object]:
    named = dict(zip(CELL, key, strict=True))
    check_cell(group, named)
    busy = tuple(median(times) for times in zip(*group["busy_ms"], strict=True))
    of_computing = any(busy) and named["module"] == "attention"
    exposed = [1 - max(times) / ms for times, ms in zip(group["busy_ms"], group["latency_ms"], strict=True)]
    return named | {
        **{name: group[name].iloc[0] for name in ("percentages", "block_lens", "clamped", "bytes_moved", "regret")},
        **latency_of(group),
        "busy_ms": busy,
        "imbalance": max(busy) / mean(busy) if of_computing else np.nan,
        "exposed": median(exposed) if of_computing else np.nan,
    }


_VALUES = [
    "percentages",
    "block_lens",
    "clamped",
    "jobs",
    "repetitions",
    "latency_ms",
    "latency_p20_ms",
    "latency_p80_ms",
    "latency_low_ms",
    "latency_high_ms",
    "busy_ms",
    "slowdown",
    "efficiency",
    "speedup",
    "bound_ms",
    "bound_fraction",
    "bound_fraction_low",
    "bound_fraction_high",
    "regret",
    "imbalance",
    "exposed",
    "fast_alone_ms",
    "bytes_moved",
]


def choices_of_ranks(cells: pd.DataFrame) -> pd.DataFrame:
    """How many ranks strategy BALANCED uses where rings of fewer ranks were measured as well, and the best number.

    `chosen` and `best` are numbers of ranks that hold tokens: `best` has the least latency among the strategy's own
    split, rings of the fastest ranks (system `subset`) and each rank alone; `over_best` is the latency of the strategy
    over that one. The choice is `right` if it is the best, or if the range of the medians of its jobs overlaps with
    that of the best.

    Args:
        cells: The result of `cells`.

    Returns:
        One row for each module, condition, length and percentages.
    """
    where = ["module", "condition", "seq_len", "percentages"]
    found = []
    for key, group in cells.groupby(where, sort=False):
        own = group[(group["system"] == "ring") & (group["strategy"] == BALANCED)]
        if own.empty or not (group["system"] == "subset").any():
            continue
        sets = pd.concat([own, group[group["system"].isin(["subset", "alone"])]])
        mine, best = own.iloc[0], sets.loc[sets["latency_ms"].idxmin()]
        found.append(
            dict(zip(where, key, strict=True))
            | {
                "chosen": np.count_nonzero(mine["block_lens"]),
                "best": np.count_nonzero(best["block_lens"]),
                "over_best": mine["latency_ms"] / best["latency_ms"],
                "right": bool(mine["latency_low_ms"] <= best["latency_high_ms"]),
            }
        )
    return pd.DataFrame(found, columns=[*where, "chosen", "best", "over_best", "right"])


def profile_cells(rows: Sequence[ProfileRow]) -> pd.DataFrame:
    """The cells of a profile.

    latency_ms is the median over repetitions, tflops the speed at that median, and relative_speed that speed over the
    speed at 100 % (NaN if that was not measured).

    Args:
        rows: Rows that `read_rows` read together.

    Returns:
        One row for each operator, size and percentage.
    """
    table = pd.DataFrame([vars(row) for row in rows])
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
