"""Access to the cells of a platform's grid, as the paper quotes them."""

import math
from statistics import median

import pandas as pd

from heteroring.results.results import Results, headline
from heteroring.results.strategy import STRATEGIES as ALL
from heteroring.results.strategy import Strategy
from heteroring.ring.partition import Partition
from heteroring.ring.workload import ring_time
from paper.tex import count, out_of, percent, share

# The strategies that the text compares.
STRATEGIES = tuple(each for each in ALL if each != "contiguous/balanced")
CONTIGUOUS, ZIGZAG = (
    tuple(each for each in STRATEGIES if each.layout == layout) for layout in ("contiguous", "zigzag")
)
EVEN, UNEVEN = "contiguous/even", "contiguous/uneven"
ZIGZAG_EVEN, ZIGZAG_UNEVEN, BALANCED = "zigzag/even", "zigzag/uneven", "zigzag/balanced"

Cell = tuple[int, int]


class MissingData(ValueError):
    """The paper quotes a number that the measurements do not hold."""


class CellTable:
    """Values by strategy and (seq_len, percentage), out of `rows`; `what` names them in errors."""

    def __init__(self, what: str, rows: pd.DataFrame) -> None:
        self._what = what
        self.lengths = sorted(map(int, rows.seq_len.unique()))
        self.percentages = sorted(map(int, rows.percentage.unique()))
        self._rows = {
            (row["strategy"], int(row["seq_len"]), int(row["percentage"])): row for row in rows.to_dict("records")
        }

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __call__(self, name: str, cell: Cell, column: str = "latency_ms"):
        """The value of `column`. Raises MissingData, naming the cell, if it is not there or not known."""
        value = self._rows.get((name, *cell), {}).get(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise MissingData(f"{self._what}: no {column} of strategy {name} at {cell[0]} tokens and {cell[1]} %")
        return value


class Cells(CellTable):
    """Cells of one system and module on one platform."""

    def __init__(self, results: Results, system: str = "ring", module: str = "attention") -> None:
        rows = headline(results.cells)
        rows = rows[(rows.system == system) & (rows.module == module)]
        super().__init__(f"platform {results.platform}, module {module}, system {system}", rows)
        self.throttled = [(n, p) for n in self.lengths for p in self.percentages if p < 100]
        self.alone = Cells(results, "alone", module) if system == "ring" else None

    def over_grid(self, name: str, column: str = "latency_ms") -> list[float]:
        """The value in each throttled cell."""
        return [self(name, cell, column) for cell in self.throttled]

    def wins(self, name: str, other: str) -> str:
        """In how many throttled cells `name` is faster than `other`."""
        return count(sum(a < b for a, b in zip(self.over_grid(name), self.over_grid(other), strict=True)))

    def fastest(self, cell: Cell) -> str:
        return min(STRATEGIES, key=lambda name: self(name, cell))

    def clearly_won(self, cell: Cell) -> bool:
        """Whether most repetitions of the fastest strategy are faster than most of any that splits otherwise.

        Most: its 80th percentile is below their 20th.
        """
        fastest = self.fastest(cell)
        others = set(STRATEGIES) - set(self.twins(fastest, cell))
        return all(self(fastest, cell, "latency_p80_ms") < self(name, cell, "latency_p20_ms") for name in others)

    def twins(self, name: str, cell: Cell) -> list[str]:
        """The strategies, `name` among them, that make the same split in `cell`, and so the same calls."""
        split = self(name, cell, "block_lens")
        return [each for each in self._of_layout(name) if self(each, cell, "block_lens") == split]

    def all_alike(self, name: str, cell: Cell) -> bool:
        """Whether all strategies of the layout of `name` make the same split in `cell`."""
        return self.twins(name, cell) == list(self._of_layout(name))

    @staticmethod
    def _of_layout(name: str) -> tuple[str, ...]:
        return CONTIGUOUS if name in CONTIGUOUS else ZIGZAG

    def pooled(self, name: str, cell: Cell) -> float:
        """Latency of the split that `name` makes: the median over all strategies that make it."""
        return median(self(each, cell) for each in self.twins(name, cell))

    def shared_out(self, name: str, cell: Cell) -> bool:
        """Whether every rank holds tokens."""
        return 0 not in self(name, cell, "block_lens")

    def predicted(self, name: str, cell: Cell) -> float:
        """Latency if each rank did its score pairs at the speed that it has alone, and nothing else took time."""
        lens = self(name, cell, "block_lens")
        alone = [self.alone(f"alone/rank{rank}", cell) for rank in range(len(lens))]
        return ring_time(Partition(Strategy(name).layout, lens), alone)

    @property
    def extreme(self) -> Cell:
        """The longest length, with the slow rank at its slowest."""
        return self.lengths[-1], self.percentages[0]

    @property
    def equal(self) -> Cell:
        """The longest length, with all ranks at full speed."""
        return self.lengths[-1], 100


def ring_cells(results: Results) -> Cells:
    """The ring's cells, attention alone. Raises MissingData if no rank of it was ever throttled."""
    cells = Cells(results)
    if not cells.throttled:
        found = ", ".join(map(str, cells.percentages)) or "no percentage at all"
        raise MissingData(f"platform {results.platform}: the ring was measured at {found}, not below 100 %")
    return cells


def above_one(fractions: list[float]) -> str:
    """How many bound fractions exceed one, and by how much; the sentence is empty if none does."""
    above = [fraction for fraction in fractions if fraction > 1]
    if not above:
        return ""
    return (
        f"In {out_of(len(above), len(fractions))} measurements, of all strategies in all cells, the fraction exceeds "
        f"one, by {share(max(above) - 1)} at most."
    )


def strategy(name: str) -> str:
    return rf"\strategy{{{name}}}"


def place(cell: Cell) -> str:
    return f"{count(cell[0])} tokens and {percent(cell[1])}"
