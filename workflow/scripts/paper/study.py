"""The public study's record: its measurements on two L40s, its released code on two H200s, and a model of its ring.

The files and their source are described in data/published/README.md.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

import pandas as pd

from heteroring.allocators import allocation
from heteroring.allocators.formula import TERMS, Formula
from heteroring.allocators.profile_table import ProfileTable
from heteroring.results.tables import read_table

EVEN, LABEL, TABLE, FORMULA, HOMOGENEOUS = "even", "uneven", "lut", "formula", "reference_homogeneous"
SPLITS = (EVEN, LABEL, TABLE, FORMULA, HOMOGENEOUS)
UNEQUAL = (LABEL, TABLE, FORMULA)

# The model counts score pairs only, so it is compared with lengths at which they dominate.
CHECKED_LENGTH = 16384
# Tiles of the released kernel are 32 queries by so many keys.
KEY_TILE = 64
# Tokens of each rank in the released code's even split.
HALF = 32768

Cell = tuple[int, int]
Model = Callable[[float], tuple[float, float]]


class MissingRecord(ValueError):
    """The study's record, as tracked, lacks a number that the paper quotes."""


def masked_tiles(share: float) -> tuple[float, float]:
    """Work of both ranks in the study's ring, which computes masked tiles: in N^2 pairs, by the front one's share."""
    return share**2, 1 - share


def exact_causal(share: float) -> tuple[float, float]:
    """Work of both ranks in a ring that skips every masked pair, as in `masked_tiles`."""
    return share**2 / 2, (1 - share**2) / 2


def tokens_alone(share: float) -> tuple[float, float]:
    """Work of both ranks if it were proportional to tokens, as in `masked_tiles`."""
    return share, 1 - share


MODELS = {"masked tiles": masked_tiles, "exact causal": exact_causal, "tokens": tokens_alone}


def time(model: Model, share: float, speeds: tuple[float, float]) -> float:
    """Time of the slower rank by a model of the work.

    Args:
        model: Gives the work of the rank in front and of the one behind.
        share: Share of the tokens on the rank in front.
        speeds: Speed of the rank in front and of the one behind.

    Returns:
        The time, in the model's unit.
    """
    return max(work / speed for work, speed in zip(model(share), speeds, strict=True))


def error(excesses: Iterable[float]) -> float:
    """The largest relative error of a prediction, from ratios of recorded to predicted times."""
    return max(abs(each - 1) for each in excesses)


def scatter(excesses: Iterable[float]) -> float:
    """Standard deviation of the logarithms of recorded over predicted times.

    It does not depend on the model's unit of time: a common factor cancels.
    """
    return stdev(map(math.log, excesses))


@dataclass(frozen=True)
class Study:
    """Latency in ms and two shard lengths by split and (seq_len, percentage); the profile of matrix products.

    `coefficients` of the released formula by term. `released`: latencies in ms of the released code on two H200s, by
    (percentages, tokens of rank 0), at 65,536 tokens.
    """

    latency: dict[str, dict[Cell, float]]
    tokens: dict[str, dict[Cell, tuple[int, int]]]
    profile: ProfileTable
    coefficients: dict[str, float]
    released: dict[tuple[str, int], float]

    @property
    def cells(self) -> list[Cell]:
        """The recorded (seq_len, percentage), ascending."""
        return sorted(self.latency[EVEN])

    @property
    def checked(self) -> list[Cell]:
        """The cells of CHECKED_LENGTH tokens or more."""
        return [cell for cell in self.cells if cell[0] >= CHECKED_LENGTH]

    @property
    def lengths(self) -> list[int]:
        """The recorded lengths in tokens, ascending."""
        return sorted({length for length, _ in self.cells})

    @property
    def percentages(self) -> list[int]:
        """The recorded percentages, ascending."""
        return sorted({percentage for _, percentage in self.cells})

    def slowdown(self, split: str, cell: Cell) -> float:
        """The time of a split over that of the run with equal ranks."""
        return self.latency[split][cell] / self.latency[HOMOGENEOUS][cell]

    def speed(self, cell: Cell) -> float:
        """Speed of rank 1 relative to rank 0 in attention: even shards cost it 1/2 homogeneously, 1/(2s) throttled."""
        return 1 / self.slowdown(EVEN, cell)

    def product_speed(self, percentage: int) -> float:
        """Speed of the largest matrix product relative to a whole GPU's, which is the profile's last percentage."""
        values = self.profile.values[-1]
        return values[self.profile.percentages.index(float(percentage))] / values[-1]

    def share(self, split: str, cell: Cell) -> float:
        """Rank 0's share of the tokens."""
        return self.tokens[split][cell][0] / cell[0]

    def excess(self, split: str, cell: Cell, model: Model = masked_tiles) -> float:
        """Recorded over predicted time. The homogeneous run fixes the model's unit, the even run rank 1's speed."""
        unit = self.latency[HOMOGENEOUS][cell] / time(model, 0.5, (1, 1))
        return self.latency[split][cell] / (unit * time(model, self.share(split, cell), (1, self.speed(cell))))

    def excesses(self, model: Model = masked_tiles, tile: int = 1) -> list[float]:
        """`excess` of the unequal splits from CHECKED_LENGTH tokens on whose shards are multiples of `tile`."""
        return [
            self.excess(split, cell, model)
            for split in UNEQUAL
            for cell in self.checked
            if not any(length % tile for length in self.tokens[split][cell])
        ]

    def released_excesses(self, model: Model = masked_tiles) -> list[float]:
        """`excess` of the released code on H200s, in both orders, where shards are whole tiles of keys.

        Even splits that fix unit or speed, with the slow rank last, are not among them.
        """
        equal = self.released["100 100", HALF]
        found = []
        for (percentages, tokens), latency in self.released.items():
            front, back = map(int, percentages.split())
            slow = min(front, back)
            speed = equal / self.released[f"100 {slow}", HALF] if slow < 100 else 1.0
            speeds = (speed, 1.0) if front < back else (1.0, speed)
            fixes = tokens == HALF and front >= back
            if tokens % KEY_TILE == 0 and not fixes:
                found.append(latency / equal * time(model, 0.5, (1, 1)) / time(model, tokens / (2 * HALF), speeds))
        return found

    def loss(self, ratio: float, cell: Cell) -> float:
        """The ring's time if rank 1 has `ratio` times the tokens of rank 0, over its least time, by `masked_tiles`."""
        speed = self.speed(cell)
        return time(masked_tiles, 1 / (1 + ratio), (1, speed)) / best_masked_share(speed) ** 2


def best_masked_share(speed: float) -> float:
    """The front rank's share that balances `masked_tiles` if the other runs at `speed`: s f^2 + f = 1."""
    return (math.sqrt(1 + 4 * speed) - 1) / (2 * speed)


def read(folder: Path) -> Study:
    """The record in `folder`. Raises MissingRecord, naming the file and what is missing, unless it is complete."""
    ring = _table(folder / "l40x2_ring_sweep.csv", ["split_type", "seq_len", "slowdown_pct"])
    matmul = _table(folder / "l40_matmul_mps_sweep.csv", ["size", "mps_pct"])
    formula = _table(folder / "l40_formula.csv", ["term"])
    released = _table(folder / "h200x2_rank_order.csv", ["percentages", "seq_len", "rank0_tokens"], grid=False)
    coefficients = dict(zip(formula["term"], formula["coefficient"], strict=True))
    if set(coefficients) != set(TERMS):
        raise MissingRecord(f"{folder / 'l40_formula.csv'}: terms {', '.join(coefficients)}, not {', '.join(TERMS)}")
    cells = list(zip(ring["seq_len"], ring["slowdown_pct"], strict=True))
    by_split = {split: {} for split in SPLITS}
    for split, cell, row in zip(ring["split_type"], cells, ring.itertuples(), strict=True):
        by_split[split][cell] = row
    speeds = matmul.pivot(index="size", columns="mps_pct", values="tflops")
    return Study(
        latency={name: {at: row.overall_latency_ms for at, row in rows.items()} for name, rows in by_split.items()},
        tokens={
            name: {at: (row.rank0_tokens, row.rank1_tokens) for at, row in rows.items()}
            for name, rows in by_split.items()
        },
        profile=ProfileTable(
            source="matmul",
            platform="the study's L40",
            setup={"dtype": ", ".join(sorted(set(matmul["dtype"])))},
            lengths=tuple(map(int, speeds.index)),
            percentages=tuple(map(float, speeds.columns)),
            values=tuple(map(tuple, speeds.to_numpy().tolist())),
            rows=len(matmul),
        ),
        coefficients=coefficients,
        released={(row.percentages, row.rank0_tokens): row.latency_ms for row in released.itertuples()},
    )


def _table(path: Path, key: Sequence[str], grid: bool = True) -> pd.DataFrame:
    """The table, with no empty field and, if it is a `grid`, one row per combination of values in the columns `key`."""
    try:
        table = read_table(path)
    except ValueError as error:
        raise MissingRecord(str(error)) from error
    for column in key:
        if column not in table:
            raise MissingRecord(f"{path}: column {column!r} is missing (found: {', '.join(table.columns)})")
    if table.isna().any(axis=None):
        raise MissingRecord(f"{path}: row {int(table.isna().any(axis=1).argmax()) + 2} has an empty field")
    if table.duplicated(list(key)).any():
        raise MissingRecord(f"{path}: two rows for the same {', '.join(key)}")
    combinations = math.prod(table[column].nunique() for column in key)
    if grid and len(table) != combinations:
        raise MissingRecord(f"{path}: {len(table)} rows, where its {', '.join(key)} make {combinations}")
    return table


def refitted(study: Study) -> Formula:
    """The regression formula fitted to the study's profile by this project's code."""
    return Formula.fit(study.profile)


def clamped(study: Study, model: Formula) -> list[Cell]:
    """The study's cells in which the formula's speed of a rank is not positive."""
    return [
        cell
        for cell in study.cells
        if allocation(FORMULA, cell[0], percentages=(100, cell[1]), profile=model, layout="contiguous").clamped
    ]


def raw_speed(model: Formula, length: int, percentage: int) -> float:
    """What the fitted polynomial says, in TFLOP/s, also where it is negative."""
    x = math.log10(length)
    return sum(model.coefficients[term] * x**i * percentage**j for term, (i, j) in TERMS.items())
