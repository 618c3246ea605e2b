"""Numbers that the paper derives from the published study's record: two L40s, contiguous shards, rank 1 throttled.

The files and their source are described in data/published/README.md. No code of this project was measured for them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pandas as pd

from heteroring.allocators import allocation
from heteroring.allocators.formula import TERMS, Formula
from heteroring.allocators.profile_table import ProfileTable
from heteroring.results.tables import read_table
from paper.tex import count, listed, out_of, percent, rounded, tabular

EVEN, LABEL, TABLE, FORMULA, HOMOGENEOUS = "even", "uneven", "lut", "formula", "reference_homogeneous"
SPLITS = (EVEN, LABEL, TABLE, FORMULA, HOMOGENEOUS)
UNEQUAL = (LABEL, TABLE, FORMULA)

COLUMNS = {
    "l40x2_ring_sweep.csv": (
        *("split_type", "seq_len", "slowdown_pct"),
        *("overall_latency_ms", "rank0_tokens", "rank1_tokens"),
    ),
    "l40_matmul_mps_sweep.csv": ("size", "mps_pct", "dtype", "tflops"),
    "l40_formula.csv": ("term", "coefficient"),
    "h200x2_layer.csv": ("device", "split_type", "seq_len", "slowdown_pct", "overall_latency_ms"),
}
RING, MATMUL, COEFFICIENTS, RERUN = COLUMNS

# The model counts score pairs only: it is held against lengths at which they dominate.
CHECKED_LENGTH = 16384
# Tiles of the released kernel: 32 queries by 64 keys.
KEY_TILE, QUERY_TILE = 64, 32
SLOW_SPEED = 0.1

Cell = tuple[int, int]


class MissingRecord(ValueError):
    """The paper quotes what the published record, as tracked, does not hold."""


@dataclass(frozen=True)
class Study:
    """The record: a latency in ms and two shard lengths by split and (seq_len, percentage), the profile of
    matrix products in TFLOP/s, and the released coefficients by term. `rerun`: latencies in ms of the released code on
    other devices, by (device, split, seq_len, percentage).
    """

    latency: dict[str, dict[Cell, float]]
    tokens: dict[str, dict[Cell, tuple[int, int]]]
    profile: ProfileTable
    coefficients: dict[str, float]
    rerun: dict[tuple[str, str, int, int], float]

    @property
    def cells(self) -> list[Cell]:
        return sorted(self.latency[EVEN])

    @property
    def lengths(self) -> list[int]:
        return sorted({length for length, _ in self.cells})

    @property
    def percentages(self) -> list[int]:
        return sorted({percentage for _, percentage in self.cells})

    def speed(self, cell: Cell) -> float:
        """Speed of rank 1 relative to rank 0 in attention: even shards cost it 1/2 homogeneously, 1/(2s) throttled."""
        return self.latency[HOMOGENEOUS][cell] / self.latency[EVEN][cell]

    def share(self, split: str, cell: Cell) -> float:
        """Rank 0's share of the tokens."""
        return self.tokens[split][cell][0] / cell[0]

    def ratio(self, split: str, cell: Cell) -> float:
        """Rank 1's tokens over rank 0's."""
        first, second = self.tokens[split][cell]
        return second / first

    def excess(self, split: str, cell: Cell) -> float:
        """Recorded latency over the model's. The homogeneous run, 1/2 in the model, gives the unit of time."""
        unit = 2 * self.latency[HOMOGENEOUS][cell]
        return self.latency[split][cell] / (unit * masked_time(self.share(split, cell), self.speed(cell)))

    def loss(self, ratio: float, cell: Cell) -> float:
        """The model's time if rank 1 has `ratio` times the tokens of rank 0, over its least time."""
        speed = self.speed(cell)
        return masked_time(1 / (1 + ratio), speed) / best_masked_share(speed) ** 2


def masked_time(share: float, speed: float) -> float:
    """Time of two contiguous shards that compute masked tiles, rank 0 holding `share` of the tokens.

    In units of N^2 score pairs at rank 0's speed: rank 0 computes f^2, rank 1, `speed` times as fast, 1 - f.
    """
    return max(share**2, (1 - share) / speed)


def best_masked_share(speed: float) -> float:
    """The share that balances `masked_time`: s f^2 + f = 1."""
    return (math.sqrt(1 + 4 * speed) - 1) / (2 * speed)


def read(folder: Path) -> Study:
    """The record in `folder`. Raises MissingRecord, naming file and what lacks, unless it is whole."""
    ring, matmul, coefficients, rerun = (_table(folder / name, columns) for name, columns in COLUMNS.items())
    cells = [(int(n), int(p)) for n, p in zip(ring.seq_len, ring.slowdown_pct, strict=True)]
    rows = dict(zip(zip(ring.split_type, cells, strict=True), ring.to_dict("records"), strict=True))
    lengths, percentages = sorted(set(ring.seq_len)), sorted(set(ring.slowdown_pct))
    grid = [(int(n), int(p)) for n in lengths for p in percentages]
    _whole(folder / RING, len(ring), rows, [(split, cell) for split in SPLITS for cell in grid])

    keys = [(int(n), int(p)) for n, p in zip(matmul["size"], matmul.mps_pct, strict=True)]
    speeds = dict(zip(keys, map(float, matmul.tflops), strict=True))
    sizes, levels = sorted({n for n, _ in keys}), sorted({p for _, p in keys})
    _whole(folder / MATMUL, len(matmul), speeds, [(n, p) for n in sizes for p in levels])

    terms = dict(zip(coefficients.term, map(float, coefficients.coefficient), strict=True))
    _whole(folder / COEFFICIENTS, len(coefficients), terms, list(TERMS))
    return Study(
        latency={split: {cell: float(rows[split, cell]["overall_latency_ms"]) for cell in grid} for split in SPLITS},
        tokens={
            split: {
                cell: (int(rows[split, cell]["rank0_tokens"]), int(rows[split, cell]["rank1_tokens"])) for cell in grid
            }
            for split in SPLITS
        },
        profile=ProfileTable(
            source="matmul",
            platform="published L40",
            setup={"dtype": listed(sorted(set(matmul.dtype)))},
            lengths=tuple(sizes),
            percentages=tuple(map(float, levels)),
            values=tuple(tuple(speeds[n, p] for p in levels) for n in sizes),
            rows=len(matmul),
        ),
        coefficients=terms,
        rerun={
            (row.device, row.split_type, int(row.seq_len), int(row.slowdown_pct)): float(row.overall_latency_ms)
            for row in rerun.itertuples()
        },
    )


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = read_table(path)
    except ValueError as error:
        raise MissingRecord(str(error)) from error
    for column in columns:
        if column not in table:
            raise MissingRecord(f"{path}: column {column!r} is missing (found: {', '.join(table.columns)})")
        if table[column].isna().any():
            raise MissingRecord(f"{path}: column {column!r} is empty in row {int(table[column].isna().argmax()) + 2}")
    return table


def _whole(path: Path, rows: int, found: Iterable, expected: list) -> None:
    """Every expected key in one row, and no other row."""
    found = set(found)
    missing = [key for key in expected if key not in found]
    if missing:
        raise MissingRecord(f"{path}: no row for {missing[0]} ({len(missing)} missing)")
    if rows != len(expected):
        raise MissingRecord(f"{path}: {rows} rows for {len(expected)} different ones")


def model_constants() -> dict[str, str]:
    """Values of the analysis's own formulas, at equal ranks (s = 1) and at a slow one."""
    slow = SLOW_SPEED
    golden = best_masked_share(1.0)
    return {
        "ModelSlowSpeed": str(slow),
        "ModelSlowSpeedup": rounded(3 * (1 + slow) ** 2 / (4 * slow * (2 + slow)), 2),
        "ModelSlowFraction": rounded((1 + slow) / (2 + slow), 2),
        "ModelSlowLost": rf"{rounded(100 * (1 - slow) / 2, 2)}\,\%",
        "ModelSlowLeft": rf"{rounded(100 * (1 + slow) / 2, 2)}\,\%",
        "ModelGoldenShare": rounded(golden),
        "ModelGoldenTime": rounded(golden**2),
        "ModelGoldenGain": rounded(masked_time(0.5, 1.0) / golden**2),
    }


def check(study: Study) -> dict[str, str]:
    """The masked-tile model against the unequal splits of the record."""
    excess = {(split, cell): study.excess(split, cell) for split in UNEQUAL for cell in study.cells}
    checked = {key: value for key, value in excess.items() if key[1][0] >= CHECKED_LENGTH}
    below = [value for key, value in excess.items() if key[1][0] < CHECKED_LENGTH]
    groups: dict[str, list[float]] = {"keys": [], "queries": [], "neither": []}
    alone = 0
    for (split, cell), value in checked.items():
        first, second = study.tokens[split][cell]
        tile = math.gcd(first, second)
        fits = "keys" if tile % KEY_TILE == 0 else "queries" if tile % QUERY_TILE == 0 else "neither"
        groups[fits].append(value)
        alone += fits == "keys" and second == 0
    labels = {
        "keys": f"multiple of {KEY_TILE}",
        "queries": f"of {QUERY_TILE}, not of {KEY_TILE}",
        "neither": "any other",
    }
    for name, values in groups.items():
        if not values:
            raise MissingRecord(
                f"no recorded split from {CHECKED_LENGTH} tokens on has shards of length {labels[name]}"
            )
    table = tabular(
        "@{}lrrrr@{}",
        [("Length of a shard", "cells", "least", "median", "most")],
        [(labels[name], count(len(v)), *map(rounded, (min(v), median(v), max(v)))) for name, v in groups.items()],
    )
    losing = [
        p
        for p in study.percentages
        if all(study.latency[LABEL][n, p] > study.latency[EVEN][n, p] for n in study.lengths if n >= CHECKED_LENGTH)
    ]
    if not losing:
        raise MissingRecord(f"proportional shards never lose to even ones from {CHECKED_LENGTH} tokens on")
    return {
        "PublishedCheckedLength": count(CHECKED_LENGTH),
        "PublishedCheckedCells": count(len(checked)),
        "PublishedCheckTable": table,
        "PublishedKeyTile": count(KEY_TILE),
        "PublishedQueryTile": count(QUERY_TILE),
        "PublishedAlignedError": rf"{rounded(100 * max(abs(v - 1) for v in groups['keys']), 2)}\,\%",
        "PublishedAlignedCells": count(len(groups["keys"])),
        "PublishedAlignedAlone": count(alone),
        "PublishedUnalignedCost": rf"{rounded(100 * (median(groups['neither']) - 1), 2)}\,\%",
        "PublishedModelLeast": rounded(min(checked.values())),
        "PublishedModelMost": rounded(max(checked.values())),
        "PublishedShortMedian": rounded(median(below)),
        "PublishedShortMost": rounded(max(below)),
        "PublishedLabelLosses": rf"{listed(map(str, losing))}\,\%",
    }


def speeds(study: Study) -> dict[str, str]:
    """Nominal percentage, the speed that attention reached, and the speeds of products."""
    longest, middle = study.lengths[-1], 50
    cell = (longest, middle)
    shown = study.percentages[::2]
    size = study.profile.lengths[-1]
    at_size = dict(zip(map(int, study.profile.percentages), study.profile.values[-1], strict=True))
    products = {p: at_size[p] / at_size[100] for p in study.percentages}
    table = tabular(
        "@{}l" + "r" * len(shown) + "@{}",
        [(r"Nominal, \%", *map(str, shown))],
        [
            (f"Attention, {count(longest)} tokens", *(rounded(study.speed((longest, p))) for p in shown)),
            (rf"Product of size {count(size)}", *(rounded(products[p]) for p in shown)),
        ],
    )
    label_wins = [each for each in study.cells if study.loss(each[1] / 100, each) < study.loss(study.speed(each), each)]
    efficiencies = [
        study.latency[HOMOGENEOUS][n, study.percentages[0]] / study.latency[split][n, study.percentages[0]]
        for split in UNEQUAL
        for n in study.lengths
    ]
    tested = [each for each in study.cells if each[0] >= CHECKED_LENGTH]
    speed = study.speed(cell)
    return {
        "PublishedShortest": count(study.lengths[0]),
        "PublishedLongest": count(longest),
        "PublishedLowest": str(study.percentages[0]),
        "PublishedHighest": str(study.percentages[-1]),
        "PublishedMiddle": percent(middle),
        "PublishedNominalTable": table,
        "PublishedProductSpeed": rounded(products[middle]),
        "PublishedAttentionSpeed": rounded(speed),
        "PublishedTableRatio": rounded(study.ratio(TABLE, cell)),
        "PublishedBestRatio": rounded(speed * best_masked_share(speed)),
        "PublishedLabelLoss": rounded(study.loss(middle / 100, cell)),
        "PublishedSpeedLoss": rounded(study.loss(speed, cell)),
        "PublishedTableLoss": rounded(study.loss(study.ratio(TABLE, cell), cell)),
        "PublishedLabelWins": out_of(sum(n >= CHECKED_LENGTH for n, _ in label_wins), len(tested)),
        "PublishedLabelWinsShort": out_of(
            sum(n < CHECKED_LENGTH for n, _ in label_wins), len(study.cells) - len(tested)
        ),
        "PublishedEfficiencyLeast": percent(round(100 * min(efficiencies))),
        "PublishedEfficiencyMost": percent(round(100 * max(efficiencies))),
        "PublishedCells": count(len(study.cells)),
    }


def formula(study: Study) -> dict[str, str]:
    """The regression formula fitted again by this project's code, against the released one and its splits."""
    fitted = Formula.fit(study.profile)
    # The study states speeds in percent of the largest, to six digits.
    scale = 100 / max(map(max, study.profile.values))
    agree = sum(float(f"{fitted.coefficients[term] * scale:.6g}") == study.coefficients[term] for term in TERMS)

    def ours(name: str, cell: Cell):
        percentages = (100, cell[1])
        return allocation(name, cell[0], percentages=percentages, profile=fitted, layout="contiguous")

    allocations = {cell: ours(FORMULA, cell) for cell in study.cells}
    flagged = {cell for cell in study.cells if allocations[cell].clamped}
    starved = {cell for cell in study.cells if study.tokens[FORMULA][cell][1] == 0}
    if flagged != starved:
        raise MissingRecord(
            f"the formula turns negative at {sorted(flagged)}, but the record has a rank without tokens at "
            f"{sorted(starved)}: the paper says that these are the same"
        )
    apart = [
        abs(allocations[cell].block_lens[0] - study.tokens[FORMULA][cell][0])
        for cell in study.cells
        if cell not in starved
    ]
    labels = sum(ours(LABEL, cell).block_lens == study.tokens[LABEL][cell] for cell in study.cells)
    extreme = (study.lengths[-1], study.percentages[0])
    x = math.log10(extreme[0])
    raw = sum(fitted.coefficients[term] * x**i * extreme[1] ** j for term, (i, j) in TERMS.items())
    return {
        "PublishedFormulaTerms": count(len(TERMS)),
        "PublishedFormulaAgree": count(agree),
        "PublishedFormulaRsquared": rounded(fitted.r2, 4),
        "PublishedFormulaHeldPercentage": rounded(fitted.r2_leave_one_percentage_out),
        "PublishedFormulaHeldLength": rounded(fitted.r2_leave_one_length_out),
        "PublishedFormulaCells": count(len(apart)),
        "PublishedFormulaExact": count(apart.count(0)),
        "PublishedFormulaApart": count(max(apart)),
        "PublishedStarved": count(len(starved)),
        "PublishedNegativeSpeed": f"${rounded(raw)}$",
        "PublishedLabelSplits": count(labels),
    }


def numbers(study: Study) -> dict[str, str]:
    """All macros of the analysis, by name."""
    return {**model_constants(), **check(study), **speeds(study), **formula(study)}
