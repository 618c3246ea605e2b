"""Synthetic measurements of two unequal ranks, with seeded noise.

Figures and notebooks are tested on these. Work is counted in score pairs, a rank at p % computes
`speed(p)` times as fast as at 100 %, and the slowest rank sets the latency. Columns, units and metric definitions are
those of the real data, but nothing of `heteroring.bench` computes them: this is an independent reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from heteroring.results.strategy import STRATEGIES, Strategy, name_of, parts_of
from heteroring.ring.partition import LAYOUTS

PUBLISHED = tuple(s for s in STRATEGIES if s.layout == "contiguous" and s.allocator != "balanced")
ZIGZAG = tuple(s for s in STRATEGIES if s.layout == "zigzag")
# One thing varied at a time, as in the overlays of the workflow's configuration.
ABLATION = (
    *("contiguous/even:unfused", "contiguous/balanced:untiled.unfused", "zigzag/balanced:untiled.unfused"),
    *("zigzag/balanced:unfused", "zigzag/balanced", "zigzag/balanced:p2p", "contiguous/even", "zigzag/even"),
)
NEIGHBOURS = tuple(name_of(layout, f"balanced:{by}") for layout in LAYOUTS for by in ("-20", "-5", "+5", "+20"))


@dataclass(frozen=True)
class Grid:
    """A platform and its grid. `pair_ns`: time of one score pair, all heads, at full speed.

    `slow_first`: percentages that are measured in the other rank order too, each setting in `jobs` jobs.
    `model`: whole language models too. A token's work beside attention in a layer takes as long as `token_pairs` pairs.
    `visit_pairs`: cost of a query row of a further ring step, in the same unit; 0 where it was not profiled.
    """

    platform: str
    throttle: str
    device: str
    device_label: str
    lengths: tuple[int, ...]
    percentages: tuple[int, ...]
    matmul_sizes: tuple[int, ...]
    strategies: tuple[str, ...] = PUBLISHED + ZIGZAG
    modules: tuple[str, ...] = ("attention", "fms")
    model: bool = True
    visit_pairs: int = 300
    slow_first: tuple[int, ...] = ()
    jobs: int = 1
    repetitions: int = 5
    heads: int = 4
    head_dim: int = 64
    dtype: str = "float32"
    baselines: bool = False
    pair_ns: float = 15.5
    token_pairs: int = 600
    step_ms: float = 0.3
    matmul_tflops: float = 0.06
    speed_exponent: float = 1.0
    noise: float = 0.015

    def attention_speed(self, percentage: int) -> float:
        """Share of full speed that attention reaches when throttled to `percentage`."""
        return (percentage / 100) ** self.speed_exponent

    def matmul_speed(self, percentage: int, size: int) -> float:
        """The same for a square matmul: small ones lose less, because they never filled the device."""
        small = min(self.matmul_sizes) / size
        return (percentage / 100) ** (self.speed_exponent * (1 - 0.25 * small))


CPU = Grid(
    platform="cpu",
    throttle="pacing",
    device="AMD EPYC 9B45",
    device_label="2 paced CPU ranks (AMD EPYC 9B45)",
    lengths=(512, 1024, 2048, 4096),
    percentages=tuple(range(10, 101, 10)),
    matmul_sizes=(128, 256, 512, 1024),
    slow_first=(10, 50),
)
GPU = Grid(
    platform="h200x2",
    throttle="mps",
    device="NVIDIA H200",
    device_label="2 x NVIDIA H200, MPS",
    lengths=(4096, 8192, 16384, 32768, 65536),
    percentages=tuple(range(10, 101, 10)),
    matmul_sizes=(1024, 2048, 4096, 8192, 16384),
    heads=32,
    head_dim=128,
    dtype="bfloat16",
    baselines=True,
    slow_first=(10, 50),
    pair_ns=0.0268,
    token_pairs=8_000,
    step_ms=0.03,
    matmul_tflops=760.0,
    speed_exponent=0.87,
    noise=0.008,
)
TINY = replace(CPU, lengths=(128, 256), percentages=(50, 100), matmul_sizes=(64, 128), repetitions=2, slow_first=(50,))


@dataclass
class SyntheticResults:
    """The attributes of `heteroring.results.results.Results` that figures read."""

    platform: str
    cells: pd.DataFrame
    profile: pd.DataFrame
    measurements: pd.DataFrame
    fitted_models: dict[str, dict]
    provenance: dict
    device_label: str
    model: pd.DataFrame
    trace: pd.DataFrame
    chunks: pd.DataFrame
    notes: str = ""

    def devices_under(self, throttle: str) -> str:
        return self.device_label


def write_platform(folder: Path, grid: Grid, seed: int = 0) -> None:
    """A platform's folder as its jobs leave it, one file per percentage, aggregated by the project's own command."""
    from heteroring.results.aggregate import aggregate
    from heteroring.results.provenance import write_json
    from heteroring.results.rows import Measurement, ProfileRow, write_rows
    from synthetic_model import write_model

    rng = np.random.default_rng(seed)
    measurements = [Measurement(**row) for row in measurement_rows(grid, rng)]
    profiled = profile_rows(grid, rng)
    profile = [ProfileRow(**row) for row in profiled]
    for percentages, job in product(settings(grid), range(1, grid.jobs + 1)):
        name = bench_name(percentages, job)
        here = [row for row in measurements if (row.percentages, row.job) == (percentages, job)]
        write_rows(folder / "bench" / f"{name}.csv", here)
        write_json(folder / "bench" / f"{name}.json", provenance(grid, percentages) | {"row_count": len(here)})
    for percentage in grid.percentages:
        name = f"pct-{percentage:03d}"
        here = [row for row in profile if row.percentage == percentage]
        write_rows(folder / "profile" / f"{name}.csv", here)
        write_json(folder / "profile" / f"{name}.json", provenance(grid, (percentage,)) | {"row_count": len(here)})
    if grid.model:
        write_model(folder, grid, rng)
    for name, model in fitted_models(grid, derived_profile(pd.DataFrame(profiled))).items():
        write_json(folder / "models" / f"{name}.json", model)
    aggregate(folder)


def synthetic_results(grid: Grid, seed: int = 0) -> SyntheticResults:
    from synthetic_model import chunk_rows, model_cells, model_rows, trace_rows, trace_table

    rng = np.random.default_rng(seed)
    measurements = named(pd.DataFrame(measurement_rows(grid, rng)))
    profile = derived_profile(pd.DataFrame(profile_rows(grid, rng)))
    return SyntheticResults(
        platform=grid.platform,
        cells=cells(measurements),
        profile=profile,
        measurements=measurements,
        fitted_models=fitted_models(grid, profile),
        provenance=provenance(grid, (100, min(grid.percentages))),
        device_label=grid.device_label,
        model=model_cells(model_rows(grid, rng)) if grid.model else pd.DataFrame(),
        trace=trace_table(trace_rows(grid, rng)) if grid.model else pd.DataFrame(),
        chunks=pd.DataFrame(chunk_rows(grid)) if grid.model else pd.DataFrame(),
    )


def fitted_models(grid: Grid, profile: pd.DataFrame) -> dict[str, dict]:
    """The content of a platform's folder `models`, by name."""
    formulas = {f"formula-{kind}": formula_model(profile, kind) for kind in ("matmul", "attention")}
    return formulas | ({"cost-attention": cost_model(grid)} if grid.visit_pairs else {})


def settings(grid: Grid) -> list[tuple[int, int]]:
    """The percentages of the two ranks in every setting of the ring."""
    return [*((100, percentage) for percentage in grid.percentages), *((slow, 100) for slow in grid.slow_first)]


def bench_name(percentages: tuple[int, ...], job: int = 1) -> str:
    """The name of the files of a job of the ring, without suffix."""
    return f"pct-{'-'.join(f'{percentage:03d}' for percentage in percentages)}.job-{job}"


def block_lens(
    grid: Grid, strategy: str, seq_len: int, percentage: int, rng, slow_first: bool = False
) -> tuple[int, int]:
    """Tokens of the two ranks, of which the second is throttled, or the first."""
    layout, allocator = Strategy(strategy).layout, Strategy(strategy).allocator
    nearest = min(grid.matmul_sizes, key=lambda size: abs(np.log(size / seq_len)))
    speed = {
        "even": 1.0,
        "uneven": percentage / 100,
        "lut": grid.matmul_speed(percentage, nearest),
        "formula": max(0.04, percentage / 100 * rng.normal(1.0, 0.12) + 0.03),
        "balanced": grid.attention_speed(percentage),
    }[allocator]
    share = speed / (1 + speed) * (1 + Strategy(strategy).shift / 100)
    if allocator == "balanced" and layout == "contiguous":
        share = np.sqrt(share) if slow_first else 1 - np.sqrt(1 - share)
    slow = round(seq_len * share)
    return (slow, seq_len - slow) if slow_first else (seq_len - slow, slow)


def busy_ms(
    grid: Grid, layout: str, lens: tuple[int, int], percentages: tuple[int, int], module: str
) -> tuple[float, float]:
    """Noise-free computing time of each rank: contiguous spans cost (e^2 - s^2) / 2, zigzag shards n * N / 2.

    The layer adds what each token costs in its projections.
    """
    seq_len = sum(lens)
    if layout == "contiguous":
        pairs = (lens[0] ** 2 / 2, (seq_len**2 - lens[0] ** 2) / 2)
    else:
        pairs = tuple(n * seq_len / 2 for n in lens)
    if module == "fms":
        pairs = tuple(p + n * grid.token_pairs for p, n in zip(pairs, lens, strict=True))
    speeds = map(grid.attention_speed, percentages)
    steps = grid.step_ms * sum(n > 0 for n in lens)
    return tuple((p * grid.pair_ns * 1e-6 + steps * (p > 0)) / s for p, s in zip(pairs, speeds, strict=True))


def measurement_rows(grid: Grid, rng) -> list[dict]:
    """One dictionary per repetition, in the order in which one job per setting would measure them."""
    rows, splits = [], {}
    for percentages, job, module, seq_len in product(
        settings(grid), range(1, grid.jobs + 1), grid.modules, grid.lengths
    ):
        percentage, slow_first = min(percentages), percentages[0] < percentages[1]
        if job == 1:  # the others split as the first does, by the same models
            splits[percentages, module, seq_len] = [
                ("ring", s, block_lens(grid, s, seq_len, percentage, rng, slow_first)) for s in grid.strategies
            ]
        systems = list(splits[percentages, module, seq_len])
        systems += [("alone", "contiguous/alone", lens) for lens in ((seq_len, 0), (0, seq_len))]
        if grid.baselines and module == "attention":
            systems += [("context_parallel", "zigzag/even", (seq_len // 2, seq_len - seq_len // 2))]
        for system, strategy, lens in systems:
            layout, allocator = parts_of(strategy)
            exact = np.array(busy_ms(grid, layout, lens, percentages, module))
            if system == "context_parallel":
                exact = exact * 1.1
            for repetition in range(grid.repetitions):
                busy = tuple(map(float, exact * rng.normal(1.0, grid.noise, 2)))
                rows.append(
                    {
                        "platform": grid.platform,
                        "system": system,
                        "module": module,
                        "condition": "rested",
                        "seq_len": seq_len,
                        "batch": 1,
                        "heads": grid.heads,
                        "kv_heads": grid.heads,
                        "head_dim": grid.head_dim,
                        "dtype": grid.dtype,
                        "causal": True,
                        "layout": layout,
                        "allocator": allocator,
                        "model_source": {"lut": "matmul", "formula": "matmul", "balanced": "attention"}.get(
                            Strategy(strategy).allocator if system == "ring" else "", ""
                        ),
                        "clamped": allocator == "formula" and percentage == 10,
                        "throttle": grid.throttle,
                        "percentages": percentages,
                        "block_lens": lens,
                        "block": "cpu" if grid.throttle == "pacing" else "cudnn",
                        "transport": "none" if system == "alone" else "p2p",
                        "job": job,
                        "repetition": repetition,
                        "latency_ms": max(busy) + (0 if system == "alone" else grid.step_ms),
                        "busy_ms": busy,
                        "bytes_moved": 0 if system == "alone" else seq_len * grid.heads * grid.head_dim * 8,
                    }
                )
    return rows


CELL_KEYS = [
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
ORDERS = {True: "slow first", False: "slow last"}


def named(measurements: pd.DataFrame) -> pd.DataFrame:
    """The rows with the slowest rank's percentage, the ranks' order, and the name of each split."""
    rows = measurements.assign(
        percentage=measurements.percentages.map(min),
        order=["equal" if first == last else ORDERS[first < last] for first, last in measurements.percentages],
    )
    rows["strategy"] = [
        f"alone/rank{np.argmax(lens)}" if system == "alone" else name_of(layout, allocator)
        for system, layout, allocator, lens in zip(
            rows.system, rows.layout, rows.allocator, rows.block_lens, strict=True
        )
    ]
    return rows


def quantiles(latency: np.ndarray) -> dict[str, float]:
    """The columns of a cell on the distribution of its latencies."""
    low, median, high = np.quantile(latency, (0.2, 0.5, 0.8))
    return {"latency_ms": median, "latency_p20_ms": low, "latency_p80_ms": high}


@cache
def two_kinds(attention: tuple[float, ...], whole: tuple[float, ...]) -> float:
    """The least time in which two ranks can share attention and all other work, by a solver of linear programmes."""
    from scipy.optimize import linprog

    busy = np.hstack([np.diag(attention), np.diag(np.subtract(whole, attention)), -np.ones((2, 1))])
    shares = np.hstack([np.kron(np.eye(2), np.ones(2)), np.zeros((2, 1))])
    return linprog([0, 0, 0, 0, 1], A_ub=busy, b_ub=[0, 0], A_eq=shares, b_eq=[1, 1], method="highs").fun


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per cell with the metrics; NaN where the run that a metric is relative to is missing."""
    table = []
    for key, group in rows.groupby(CELL_KEYS, sort=False):
        first = {name: group[name].iloc[0] for name in ("percentages", "block_lens", "clamped", "bytes_moved")}
        cell = dict(zip(CELL_KEYS, key, strict=True))
        busy = np.median(np.array(group.busy_ms.tolist()), axis=0)
        latency, job = group.latency_ms.to_numpy(), group.job.to_numpy()
        of_jobs = [np.median(latency[job == each]) for each in set(job)]
        table.append(
            cell
            | first
            | {
                "jobs": len(of_jobs),
                "repetitions": len(group),
                **quantiles(latency),
                "latency_low_ms": min(of_jobs),
                "latency_high_ms": max(of_jobs),
                "busy_ms": tuple(float(value) for value in busy),
                "imbalance": busy.max() / busy.mean() if cell["module"] == "attention" else np.nan,
                "exposed": (
                    np.median(1 - np.max(group.busy_ms.tolist(), axis=1) / latency)
                    if cell["module"] == "attention"
                    else np.nan
                ),
            }
        )
    frame = pd.DataFrame(table)
    latency = frame.set_index(["module", "system", "strategy", "seq_len", "percentages"]).latency_ms.to_dict()
    keys = ["module", "system", "strategy", "seq_len", "percentages", "job"]
    in_job = rows.groupby(keys).latency_ms.median().to_dict()
    jobs = sorted(set(rows.job))

    def reference(*place: str | int) -> float:
        return latency.get(place, np.nan)

    derived = []
    for row in frame.itertuples():
        at = (row.seq_len, row.percentages)
        alone = [
            [in_job.get((row.module, "alone", f"alone/rank{rank}", *at, job), np.nan) for rank in (0, 1)]
            for job in jobs
        ]
        within = [
            [in_job.get(("attention", "alone", f"alone/rank{rank}", *at, job), np.nan) for rank in (0, 1)]
            for job in jobs
        ]
        layer = row.module == "fms" and not np.isnan(within).any()
        bounds = [
            two_kinds(*map(tuple, each)) if layer else 1 / sum(1 / ms for ms in each[1])
            for each in zip(within, alone, strict=True)
        ]
        own = [in_job[row.module, row.system, row.strategy, *at, job] for job in jobs]
        fractions = [bound / ms for bound, ms in zip(bounds, own, strict=True)]
        homogeneous = reference(row.module, "ring", name_of(row.layout, "even"), row.seq_len, (100, 100))
        derived.append(
            {
                "slowdown": row.latency_ms / homogeneous,
                "efficiency": homogeneous / row.latency_ms,
                "speedup": reference(row.module, "ring", name_of(row.layout, "even"), *at) / row.latency_ms,
                "bound_ms": np.median(bounds),
                "bound_fraction": np.median(fractions),
                "bound_fraction_low": min(fractions),
                "bound_fraction_high": max(fractions),
                "fast_alone_ms": np.median([min(values) for values in alone]),
            }
        )
    frame = frame.join(pd.DataFrame(derived))
    return frame.assign(regret=_regrets(rows, frame))


def _regrets(rows: pd.DataFrame, frame: pd.DataFrame) -> list[float]:
    """A split's median over all repetitions of the same call, over the least such median in its layout, less 1."""
    place = ["module", "layout", "seq_len", "percentages"]
    ring = rows[(rows.system == "ring") & ~rows.allocator.str.contains("unfused|p2p")]
    medians = ring.groupby([*place, "block_lens"]).latency_ms.median()
    best, medians = medians.groupby(level=place).min().to_dict(), medians.to_dict()
    compared = set(ring.strategy)

    def regret(row) -> float:
        at = row.module, row.layout, row.seq_len, row.percentages
        measured = row.system == "ring" and row.strategy in compared
        return medians[*at, row.block_lens] / best[at] - 1 if measured else np.nan

    return [regret(row) for row in frame.itertuples()]


def profile_rows(grid: Grid, rng) -> list[dict]:
    """Profile rows, one repetition each: square matmuls, and causal attention at the grid's lengths."""
    rows = []
    for percentage in grid.percentages:
        work = [("matmul", n, 2 * n**3, grid.matmul_tflops) for n in grid.matmul_sizes]
        full_rate = 4 * grid.heads * grid.head_dim / (grid.pair_ns * 1e3)
        work += [("attention", n, 2 * grid.heads * grid.head_dim * n * (n + 1), full_rate) for n in grid.lengths]
        for kind, size, flops, tflops in work:
            speed = grid.matmul_speed(percentage, size) if kind == "matmul" else grid.attention_speed(percentage)
            exact = flops / (tflops * speed * 1e9) + 0.1 * grid.step_ms / speed
            for repetition in range(grid.repetitions):
                latency = float(exact * rng.normal(1.0, grid.noise))
                attention = kind == "attention"
                rows.append(
                    {
                        "platform": grid.platform,
                        "kind": kind,
                        "size": size,
                        "batch": int(attention),
                        "heads": grid.heads * attention,
                        "kv_heads": grid.heads * attention,
                        "head_dim": grid.head_dim * attention,
                        "dtype": grid.dtype,
                        "causal": attention,
                        "throttle": grid.throttle,
                        "percentage": percentage,
                        "repetition": repetition,
                        "latency_ms": latency,
                        "tflops": flops / latency / 1e9,
                    }
                )
    return rows


def derived_profile(rows: pd.DataFrame) -> pd.DataFrame:
    keys = ["platform", "kind", "size", "percentage", "dtype"]
    table = []
    for key, group in rows.groupby(keys, sort=False):
        of = quantiles(group.latency_ms.to_numpy())
        flops = group.tflops.iloc[0] * group.latency_ms.iloc[0]
        table.append(
            dict(zip(keys, key, strict=True)) | {"repetitions": len(group), **of, "tflops": flops / of["latency_ms"]}
        )
    frame = pd.DataFrame(table)
    full = frame[frame.percentage == 100].set_index(["kind", "size"]).tflops
    keyed = zip(frame.kind, frame["size"], frame.tflops, strict=True)
    frame["relative_speed"] = [tflops / full.get((kind, size), np.nan) for kind, size, tflops in keyed]
    return frame


def provenance(grid: Grid, percentages: tuple[int, ...]) -> dict:
    gpu = grid.throttle == "mps"
    return {
        "platform": grid.platform,
        "devices": [grid.device] * len(percentages),
        "multiprocessors": [132] * len(percentages) if gpu else [],
        "driver": "580.159" if gpu else "",
        "python": "3.12.3",
        "torch": "2.13.0",
        "triton": "3.7.1",
        "numpy": "2.4.0",
        "cpu": {"model": "AMD EPYC 9B45", "cores": 2},
        "commit": "0" * 40,
        "dirty": False,
        "date": "2026-01-01T00:00:00+00:00",
        "command": "synthetic",
        "throttle": grid.throttle,
        "percentages": list(percentages),
        "settings": {"repetitions": grid.repetitions},
    }


def formula_model(profile: pd.DataFrame, kind: str) -> dict:
    """The file that `heteroring fit --kind formula` writes, from a plain least-squares solve."""
    rows = profile[profile.kind == kind]
    x, p = np.log10(rows["size"].to_numpy(float)), rows.percentage.to_numpy(float)
    speeds = rows.tflops.to_numpy()
    terms = np.column_stack([np.ones_like(x), x, p, x**2, x * p, p**2])
    names = ("intercept", "log10_length", "percentage", "log10_length^2", "log10_length*percentage", "percentage^2")

    def solve(keep: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(terms[keep], speeds[keep], rcond=None)[0]

    def r2(predicted: np.ndarray) -> float:
        return float(1 - ((speeds - predicted) ** 2).sum() / ((speeds - speeds.mean()) ** 2).sum())

    held_out = np.empty_like(speeds)
    for level in np.unique(p):
        held_out[p == level] = terms[p == level] @ solve(p != level)
    coefficients = solve(np.full(len(x), True))
    return {
        "kind": "formula",
        "source": kind,
        "coefficients": dict(zip(names, map(float, coefficients), strict=True)),
        "min_speed": float(speeds.min()),
        "r2": r2(terms @ coefficients),
        "r2_leave_one_percentage_out": r2(held_out),
        "r2_leave_one_length_out": None,
    }


def cost_model(grid: Grid) -> dict:
    """The file that `heteroring fit --kind cost` writes for costs that are multiples of a pair's."""

    def table(units) -> list[list[float]]:
        """`units(n)` pairs at every length and percentage, in microseconds."""
        speeds = [grid.attention_speed(p) for p in sorted(grid.percentages)]
        return [[units(n) * grid.pair_ns * 1e-3 / speed for speed in speeds] for n in grid.lengths]

    return {
        "kind": "cost",
        "source": "attention",
        "platform": grid.platform,
        "setup": {
            "dtype": grid.dtype,
            "batch": "1",
            "heads": str(grid.heads),
            "kv_heads": str(grid.heads),
            "head_dim": str(grid.head_dim),
            "causal": "True",
        },
        "rows": 1,
        "lengths": list(grid.lengths),
        "percentages": [float(p) for p in sorted(grid.percentages)],
        "attention_ms": [[us / 1e3 for us in row] for row in table(lambda n: n * (n + 1) / 2)],
        "token_us": table(lambda n: 0),
        "revisit_us": table(lambda n: grid.visit_pairs),
        "join_us": table(lambda n: grid.visit_pairs / 4 if grid.throttle == "mps" else grid.visit_pairs),
    }
