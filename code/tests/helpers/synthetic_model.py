"""Synthetic measurements of whole models: prefills, decodes and a traced layer of two unequal ranks.

A layer costs a rank its score pairs (attention) and its tokens (everything else), both at the rank's speed, and KV
takes its time to arrive. Columns and units are those of the real data; nothing of `heteroring` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from heteroring.results.model_rows import TRACED
from heteroring.results.strategy import name_of, parts_of
from synthetic import Grid, block_lens, provenance, quantiles

STRATEGIES = ("contiguous/even", "zigzag/even", "zigzag/uneven", "zigzag/balanced")
TRACED_LAYER = 2
LAYERS = 4
NEW_TOKENS = 32
KEYS = [
    "platform",
    "phase",
    "system",
    "batch",
    "captured",
    "compiled",
    "layout",
    "allocator",
    "strategy",
    "seq_len",
    "percentage",
    "percentages",
    "order",
    "new_tokens",
]


@dataclass(frozen=True)
class Costs:
    """Costs of one layer at full speed, in ms: of a score pair, of a token, and of the transfer of a token's KV."""

    pair: float
    token: float
    link: float


def costs(grid: Grid) -> Costs:
    """The layers beside attention take as long as attention does at the longest prompt."""
    pair = grid.pair_ns * 1e-6
    token = pair * max(grid.lengths) / 2
    return Costs(pair, token, 0.2 * token)


def percentages(grid: Grid) -> tuple[int, ...]:
    """The lowest, the middle and the highest, as the grid has them."""
    middle = min(grid.percentages, key=lambda p: abs(p - 50))
    return tuple(sorted({min(grid.percentages), middle, max(grid.percentages)}))


def work(layout: str, lens: tuple[int, int]) -> tuple[float, float]:
    """Score pairs of each rank."""
    total = sum(lens)
    if layout == "contiguous":
        return lens[0] ** 2 / 2, (total**2 - lens[0] ** 2) / 2
    return tuple(n * total / 2 for n in lens)


def layer_ms(grid: Grid, layout: str, lens: tuple[int, int], percentage: int) -> tuple[float, float]:
    """Computing time of each rank in one layer."""
    price, speeds = costs(grid), (1.0, grid.attention_speed(percentage))
    shares = zip(work(layout, lens), lens, speeds, strict=True)
    return tuple((pairs * price.pair + tokens * price.token) / speed for pairs, tokens, speed in shares)


def write_model(folder: Path, grid: Grid, rng) -> None:
    """The part of a platform's folder that the jobs of whole models leave."""
    from heteroring.results.model_rows import ChunkRow, ModelRow, TraceRow
    from heteroring.results.provenance import write_json
    from heteroring.results.rows import write_rows

    write_rows(folder / "rebalancing.csv", [ChunkRow(**row) for row in chunk_rows(grid)])
    files = {"pct": [ModelRow(**row) for row in model_rows(grid, rng)]}
    files["trace"] = [TraceRow(**row) for row in trace_rows(grid, rng)]
    for percentage in percentages(grid):
        for name, rows in files.items():
            path = folder / "model" / f"{name}-100-{percentage:03d}.job-1.csv"
            write_rows(path, [row for row in rows if min(row.percentages) == percentage])
        write_json(folder / "model" / f"pct-100-{percentage:03d}.job-1.json", provenance(grid, (100, percentage)))


def model_rows(grid: Grid, rng) -> list[dict]:
    """One dictionary per repetition: prefills at the two longest lengths, decodes at the longest.

    A GPU also decodes 8 sequences at each length. A token's time is that of reading its bytes at the rank's speed, plus
    a constant for the ring.
    """
    rows = []
    for percentage in percentages(grid):
        for seq_len in grid.lengths[-2:]:
            runs = [("ring", name, block_lens(grid, name, seq_len, percentage, rng)) for name in STRATEGIES]
            runs += [("alone", "contiguous/alone", lens) for lens in ((seq_len, 0), (0, seq_len))]
            for system, strategy, lens in runs:
                ttft = LAYERS * max(layer_ms(grid, parts_of(strategy)[0], lens, percentage)) + grid.step_ms
                rows += _repetitions(grid, rng, percentage, "prefill", system, strategy, lens, ttft)
                if system == "alone" or strategy in STRATEGIES[-1:]:
                    batches = [1] if seq_len == max(grid.lengths) else []
                    for batch in [*batches, *([8] if grid.throttle == "mps" else [])]:
                        limit = decode_limit_ms(grid, batch, lens, percentage)
                        token = limit + grid.step_ms + (exchange_ms(grid) if system == "ring" else 0)
                        decode = "decode", system, strategy, lens, token
                        rows += _repetitions(grid, rng, percentage, *decode, batch, limit)
    return rows


def exchange_ms(grid: Grid) -> float:
    """The additional time of a token over the ring: that of reading 0.4 of the longest KV."""
    return 0.4 * max(grid.lengths) * LAYERS * costs(grid).link / 10


def decode_limit_ms(grid: Grid, batch: int, lens, percentage: int) -> float:
    """Time of the slower of the ranks with tokens to read its KV, and weights as large as a fifth of the longest KV."""
    speeds, weights = (1.0, 0.5 + percentage / 200), max(grid.lengths) / 5
    each = [(weights + batch * n) / speed for n, speed in zip(lens, speeds, strict=True) if n]
    return LAYERS * max(each) * costs(grid).link / 10


def _model_columns(grid: Grid) -> dict:
    return {
        "platform": grid.platform,
        "architecture": "llama",
        "variant": "3-8b" if grid.throttle == "mps" else "micro",
        "layers": LAYERS,
        "emb_dim": grid.heads * grid.head_dim,
        "heads": grid.heads,
        "kv_heads": grid.heads // 4,
        "head_dim": grid.head_dim,
        "dtype": grid.dtype,
        "batch": 1,
    }


def _repetitions(
    grid: Grid, rng, percentage: int, phase: str, system: str, strategy: str, lens, exact: float, batch=1, limit=0.0
):
    layout, allocator = parts_of(strategy)
    gpu = grid.throttle == "mps"
    for repetition in range(grid.repetitions):
        yield {
            "phase": phase,
            "system": system,
            **_model_columns(grid),
            "batch": batch,
            "seq_len": sum(lens),
            "new_tokens": NEW_TOKENS if phase == "decode" else 0,
            "layout": layout,
            "allocator": allocator,
            "model_source": "block" if allocator == "balanced" else "",
            "clamped": False,
            "throttle": grid.throttle,
            "percentages": (100, percentage),
            "block_lens": lens,
            "block": "cpu" if grid.throttle == "pacing" else "triton",
            "transport": "none" if system == "alone" else "p2p",
            "job": 1,
            "repetition": repetition,
            "latency_ms": float(exact * rng.normal(1.0, grid.noise)),
            "peak_memory_bytes": tuple(int(gpu * (16e9 + 4e5 * n)) for n in lens),
            "captured": gpu and phase == "decode",
            "compiled": False,
            "limit_ms": gpu * limit,
        }


def order(percentage: int) -> str:
    return "equal" if percentage == 100 else "slow last"


def model_cells(rows: list[dict]) -> pd.DataFrame:
    """The content of derived/model.csv: one row per cell, with its references."""
    table = pd.DataFrame(rows)
    table["percentage"] = table.percentages.map(min)
    table["order"] = [order(percentage) for percentage in table.percentage]
    table["strategy"] = [
        f"alone/rank{int(np.argmax(row.block_lens))}" if row.system == "alone" else name_of(row.layout, row.allocator)
        for row in table.itertuples()
    ]
    kept = ["architecture", "variant", "layers", "emb_dim", "heads", "kv_heads", "head_dim", "dtype"]
    kept += ["throttle", "block_lens", "clamped", "block", "transport", "model_source"]
    cells = []
    calls = dict(list(table.groupby(["phase", "system", "batch", "layout", "percentages", "block_lens"])))
    for key, cell in table.groupby(KEYS, sort=False):
        first = cell.iloc[0]
        group = calls[first.phase, first.system, first.batch, first.layout, first.percentages, first.block_lens]
        of = quantiles(group.latency_ms.to_numpy())
        cells.append(
            dict(zip(KEYS, key, strict=True))
            | {name: first[name] for name in kept}
            | {
                "jobs": 1,
                "repetitions": len(group),
                **of,
                "latency_low_ms": of["latency_ms"],
                "latency_high_ms": of["latency_ms"],
                "tokens_per_second": 1e3 * first.batch * (1 if first.new_tokens else first.seq_len) / of["latency_ms"],
                "peak_memory_gb": tuple(float(b / 1e9) for b in np.max(cell.peak_memory_bytes.tolist(), axis=0)),
                "limit_ms": first.limit_ms or np.nan,
            }
        )
    frame = pd.DataFrame(cells)
    at = ["phase", "strategy", "batch", "seq_len", "percentage"]
    latency = frame.set_index(at).latency_ms.to_dict()
    derived = []
    for row in frame.itertuples():
        place = (row.batch, row.seq_len, row.percentage)
        alone = [latency[(row.phase, f"alone/rank{rank}", *place)] for rank in (0, 1)]
        bound = 1 / sum(1 / time for time in alone) if row.phase == "prefill" else np.nan
        derived.append(
            {
                "bound_ms": bound,
                **dict.fromkeys(
                    ("bound_fraction", "bound_fraction_low", "bound_fraction_high"), bound / row.latency_ms
                ),
                "fast_alone_ms": min(alone),
                "speedup": latency.get((row.phase, name_of(row.layout, "even"), *place), np.nan) / row.latency_ms,
            }
        )
    return frame.join(pd.DataFrame(derived))


def trace_rows(grid: Grid, rng) -> list[dict]:
    """One layer of two ranks per percentage and strategy: what each one does when, from a common start."""
    rows = []
    seq_len, price = max(grid.lengths), costs(grid)
    for percentage in percentages(grid):
        for strategy in TRACED:
            layout = strategy.layout
            lens = block_lens(grid, strategy, seq_len, percentage, rng)
            speeds = (1.0, grid.attention_speed(percentage))
            dense = [n * price.token / s for n, s in zip(lens, speeds, strict=True)]
            pairs = [w * price.pair / s for w, s in zip(work(layout, lens), speeds, strict=True)]
            local = [n * n / 2 * price.pair / s for n, s in zip(lens, speeds, strict=True)]
            slowest = max(d + p for d, p in zip(dense, pairs, strict=True))
            begin = [TRACED_LAYER * slowest - (0.1 * d if d < max(dense) else 0) for d in dense]
            ready = [b + 0.2 * d for b, d in zip(begin, dense, strict=True)]

            def event(rank: int, kind: str, step: int, start: float, stop: float, strategy=strategy, at=percentage):
                return {
                    "platform": grid.platform,
                    "strategy": strategy,
                    "seq_len": seq_len,
                    "percentages": (100, at),
                    "job": 1,
                    "layer": TRACED_LAYER,
                    "rank": rank,
                    "kind": kind,
                    "step": step,
                    "start_ms": float(start),
                    "stop_ms": float(stop),
                }

            for rank in (0, 1):
                rows.append(event(rank, "ready", 0, ready[rank], ready[rank]))
                clock = ready[rank]
                rows.append(event(rank, "block", 0, clock, clock := clock + local[rank]))
                if pairs[rank] > local[rank] + 1e-12:
                    arrives = max(ready[1 - rank], ready[rank]) + price.link * lens[1 - rank]
                    if arrives > clock:
                        rows.append(event(rank, "wait", 1, clock, clock := arrives))
                    rows.append(event(rank, "block", 1, clock, clock := clock + pairs[rank] - local[rank]))
                rows.append(event(rank, "layer", 0, begin[rank], clock + 0.8 * dense[rank]))
    return rows


def trace_table(rows: list[dict]) -> pd.DataFrame:
    """The content of derived/trace.csv."""
    table = pd.DataFrame(rows)
    percentages = table.percentages.map(min)
    return table.assign(percentage=percentages, order=[order(percentage) for percentage in percentages])


def chunk_rows(grid: Grid, slow: range = range(4, 10), repetitions: int = 1) -> list[dict]:
    """One dictionary per chunk of a prefill in 16 chunks, the second rank slow in some, under the four splits.

    The adaptive split changes one chunk after the speeds, and an even contiguous one is as fast as the same in zigzag.
    """
    seq_len, percentage = max(grid.lengths) // 16, min(grid.percentages)
    even = (seq_len // 2, seq_len - seq_len // 2)
    share = round(seq_len * grid.attention_speed(percentage) / (1 + grid.attention_speed(percentage)))
    rows = []
    for split in ("contiguous/even", "zigzag/balanced", "rebalanced", "oracle"):
        for chunk in range(16):
            seen = {"rebalanced": chunk - 1, "oracle": chunk}.get(split, 0)
            lens = (seq_len - share, share) if seen in slow else even
            speeds = (1.0, grid.attention_speed(percentage) if chunk in slow else 1.0)
            price = costs(grid).pair * seq_len * (chunk + 0.5) + costs(grid).token
            busy = tuple(LAYERS * tokens * price / speed for tokens, speed in zip(lens, speeds, strict=True))
            for repetition in range(repetitions):
                rows.append(
                    {
                        **_model_columns(grid),
                        "split": split,
                        "prompt_len": 16 * seq_len,
                        "chunk": chunk,
                        "seq_len": seq_len,
                        "throttle": grid.throttle,
                        "percentages": (100, percentage if chunk in slow else 100),
                        "block_lens": lens,
                        "repetition": repetition,
                        "latency_ms": max(busy) + LAYERS * grid.step_ms,
                        "busy_ms": busy,
                    }
                )
    return rows
