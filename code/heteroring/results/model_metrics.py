"""The metrics of language models, one definition each: cells, and shares of time in a traced layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from heteroring.results.model_rows import CHUNK_SPLITS, MODEL_COLUMNS, WAY, ModelRow, TraceRow
from heteroring.results.rank_percentages import order_of
from heteroring.results.repetitions import Alone, check_cell, latency_of, references, strategy_of
from heteroring.results.rows import ProfileRow

MODEL_CELL = [
    "platform",
    "phase",
    "system",
    *WAY,
    "layout",
    "allocator",
    "strategy",
    "seq_len",
    "percentage",
    "percentages",
    "order",
    "new_tokens",
]
_LAYER = ["platform", "strategy", "seq_len", "percentage", "percentages", "layer"]
HELD = ("wait", "sent")
"""Kinds of a trace's events in which a rank does nothing but wait."""

# Columns in which a cell and its references agree.
_WHERE = ["phase", *WAY, "seq_len", "percentages"]
# Columns in which two strategies agree if their calls are the same.
_CALL = ["phase", "system", *WAY, "layout", "seq_len", "percentages", "block_lens", "new_tokens"]
_KEPT = [*MODEL_COLUMNS, "throttle", "block_lens", "clamped", "model_source", "block", "transport"]


def model_cells(rows: Sequence[ModelRow], profile: Sequence[ProfileRow] = ()) -> pd.DataFrame:
    """One row for each phase, system, strategy, length, batch, throttle setting and rank order of a measured model.

    `percentage` is that of the slowest rank, `strategy` "layout/allocator", or "alone/rank0" for rank 0 alone, and
    "fms/rank0" for FMS's generate on it.
    latency_ms is the median over the repetitions of all jobs, with its 20th and 80th percentile: of a prefill the time
    to first token, of a decode the time per token. latency_low_ms and latency_high_ms are the lowest and the highest of
    the medians of its `jobs`. Strategies of one layout that make the same split make the same calls: each has the
    repetitions of all of them. With T the latency,

    - tokens_per_second: the prompt's tokens over T in a prefill, tokens generated in a decode, all sequences counted;
    - fast_alone_ms = min_r T_r, with T_r that of rank r alone in the same phase, the median over jobs;
    - bound_ms = 1 / sum_r(1 / T_r) and bound_fraction, bound_ms over the latency in that job, of a prefill, both the
      median over jobs, and the lowest and the highest fraction. A model is two kinds of work: where `profile` has its
      attention at the length and the percentages, bound_ms is the bound on splits of both kinds (`two_kind_bound`). A
      decode has none: each rank computes every layer for the new token, and only attention is split;
    - limit_ms, the median, of a decode;
    - speedup = T_even / T, of the even ring in the same layout, phase and rank order;
    - peak_memory_gb: the most of any repetition, for each rank, in units of 10^9 bytes.

    A metric whose reference was not measured is NaN. `rows` are those that `read_rows` read together. Raises ValueError
    if a cell's repetitions differ in block_lens, backend or transport.
    """
    table = pd.DataFrame([vars(row) for row in rows])
    table["percentage"] = table["percentages"].map(min)
    table["order"] = table["percentages"].map(order_of)
    table["strategy"] = [strategy_of(row) for row in rows]
    calls = dict(list(table.groupby(_CALL)))
    cells = pd.DataFrame([_cell(key, group, calls) for key, group in table.groupby(MODEL_CELL, sort=False)])
    found = references(cells, _WHERE, _attention(cells, profile))
    bounds = found[[name for name in found if name.startswith("bound")]].where(cells["phase"] == "prefill")
    speedup = found["even"] / cells["latency_ms"]
    return cells.drop(columns="job_medians").assign(**bounds, fast_alone_ms=found["fast_alone_ms"], speedup=speedup)


def _attention(cells: pd.DataFrame, profile: Sequence[ProfileRow]) -> Alone:
    """By the keys of `alone_times`, each rank's time alone for attention in all layers of a prefill, where profiled."""
    times: dict[tuple[int, int, float], list[float]] = {}
    for row in profile:
        if row.kind == "attention":
            times.setdefault((row.batch, row.size, row.percentage), []).append(row.latency_ms)
    found = {}
    for cell in cells[(cells["phase"] == "prefill") & (cells["system"] == "alone")].to_dict("records"):
        ranks = [times.get((cell["batch"], cell["seq_len"], each), []) for each in cell["percentages"]]
        if all(ranks):
            found["alone", *(cell[name] for name in _WHERE)] = [
                dict.fromkeys(cell["job_medians"], cell["layers"] * median(rank)) for rank in ranks
            ]
    return found


def _cell(key: tuple, group: pd.DataFrame, calls: Mapping[tuple, pd.DataFrame]) -> dict[str, object]:
    named = dict(zip(MODEL_CELL, key, strict=True))
    check_cell(group, named)
    first = group.iloc[0]
    times = latency_of(calls[tuple(first[name] for name in _CALL)])
    tokens = first["batch"] * (first["seq_len"] if first["phase"] == "prefill" else 1)
    peaks = np.max(group["peak_memory_bytes"].tolist(), axis=0)
    return (
        named
        | {name: first[name] for name in _KEPT}
        | times
        | {
            "tokens_per_second": 1e3 * tokens / times["latency_ms"],
            "peak_memory_gb": tuple(float(peak) / 1e9 for peak in peaks),
            "limit_ms": group["limit_ms"].replace(0, np.nan).median(),
        }
    )


def decode_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of `model_cells` that decode as `ring_generate` does: steps replayed as CUDA graphs, nothing compiled.

    A record may also hold steps that launch their kernels one by one; these are used only if no step is captured, as on
    CPUs.
    """
    decodes = cells[(cells["phase"] == "decode") & ~cells["compiled"]]
    return decodes[decodes["captured"]] if decodes["captured"].any() else decodes


def decode_gains(cells: pd.DataFrame, strategy: str) -> pd.DataFrame:
    """How much faster decode is over the ring than on the fastest rank alone.

    Args:
        cells: Cells of whole models.
        strategy: The strategy of the ring.

    Returns:
        A row for each of the `decode_cells` in which the strategy decodes and ranks alone do, too, with further
        columns: gain, T of the fastest rank alone over T; tokens, the number cached for all sequences; and that rank's
        alone_ms and alone_limit_ms.
    """
    if cells.empty:
        return pd.DataFrame(columns=["batch", "seq_len", "percentage"])
    decodes = decode_cells(cells)
    at = ["batch", "seq_len", "percentages"]
    alone = decodes[decodes["system"] == "alone"].sort_values("latency_ms").drop_duplicates(at)
    alone = alone[[*at, "latency_ms", "limit_ms"]].rename(
        columns={"latency_ms": "alone_ms", "limit_ms": "alone_limit_ms"}
    )
    gains = decodes[decodes["strategy"] == strategy].merge(alone, on=at)
    return gains.assign(gain=gains["alone_ms"] / gains["latency_ms"], tokens=gains["batch"] * gains["seq_len"])


def trace_table(rows: Sequence[TraceRow]) -> pd.DataFrame:
    """One row per event of the first job, the columns those of TraceRow, with `percentage` and `order` beside them."""
    table = pd.DataFrame([vars(row) for row in rows])
    table = table[table["job"] == table.groupby(["percentages", "strategy", "seq_len"])["job"].transform("min")]
    return table.assign(percentage=table["percentages"].map(min), order=table["percentages"].map(order_of))


def other_rank(rank: int, kind: str, step: int, ranks: int) -> int:
    """The rank for which `rank` waits in an event of a kind in HELD: the owner of the KV, or the reader of its own.

    Args:
        rank: The rank that waits.
        kind: Kind of the event.
        step: Index of the ring step.
        ranks: World size.

    Returns:
        The other rank.
    """
    return (rank - step if kind == "wait" else rank + step) % ranks


def came_ms(held: Any, ready: Mapping[int, float]) -> float:
    """When, during an event in which a rank waits, the other rank became ready.

    Args:
        held: An event of a kind in HELD.
        ready: When each rank became ready, in ms.

    Returns:
        Milliseconds, within the event.
    """
    other = ready[other_rank(held.rank, held.kind, held.step, len(held.percentages))]
    return min(max(other, held.start_ms), held.stop_ms)


def layer_shares(trace: pd.DataFrame) -> pd.DataFrame:
    """How each rank spent the traced layer, one row per strategy, length, throttle setting and rank; milliseconds.

    `trace` is the result of `trace_table`. layer_ms is the time from the layer's start to its end on that rank, and is
    the sum of

    - waiting_ms: the stream was held for another rank that was not ready yet (its `ready` is later): for KV that
    its owner did not have yet, or for a reader of this rank's own KV;
    - exposed_ms: it was held though the other rank was ready: the part of the transfer that compute did not hide;
    - busy_ms: the rest, in which it computed.
    """
    rows = []
    for key, layer in trace.groupby(_LAYER, sort=False):
        named = dict(zip(_LAYER, key, strict=True))
        ready = layer[layer["kind"] == "ready"].set_index("rank")["start_ms"].to_dict()
        for rank, events in layer.groupby("rank"):
            [whole] = events[events["kind"] == "layer"].itertuples()
            waiting = exposed = 0.0
            for held in events[events["kind"].isin(HELD)].itertuples():
                waiting += came_ms(held, ready) - held.start_ms
                exposed += held.stop_ms - came_ms(held, ready)
            layer_ms = whole.stop_ms - whole.start_ms
            shares = {"waiting_ms": waiting, "exposed_ms": exposed, "busy_ms": layer_ms - waiting - exposed}
            rows.append(named | {"rank": rank, "layer_ms": layer_ms} | shares)
    return pd.DataFrame(rows)


def chunk_totals(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each split of a prefill in chunks, in the order of CHUNK_SPLITS, which is the index.

    table: a row for each chunk, with the fields of ChunkRow.

    latency_ms is that of all chunks together, the median over repetitions; of_oracle is the oracle's over it; splits
    counts the shares in which the first repetition's chunks were split, those of a last, shorter chunk left out.
    """
    summed = table.groupby(["split", "repetition"])["latency_ms"].sum()
    whole = table[(table["repetition"] == 0) & (table["seq_len"] == table["seq_len"].max())]
    totals = pd.DataFrame(
        {"latency_ms": summed.groupby("split").median(), "splits": whole.groupby("split")["block_lens"].nunique()}
    )
    totals["of_oracle"] = totals.loc["oracle", "latency_ms"] / totals["latency_ms"]
    return totals.loc[list(CHUNK_SPLITS)]
