"""Access to the cells of a platform's grid, as the paper and its claims quote them."""

import math
from statistics import median

import pandas as pd

from heteroring.results.results import Results, headline
from heteroring.results.strategy import STRATEGIES, Strategy
from heteroring.ring.partition import LAYOUTS

CONTIGUOUS, ZIGZAG = (tuple(each for each in STRATEGIES if each.layout == layout) for layout in LAYOUTS)
EVEN, UNEVEN, LUT, FORMULA, BALANCED_CONTIGUOUS = CONTIGUOUS
ZIGZAG_EVEN, ZIGZAG_UNEVEN, ZIGZAG_LUT, ZIGZAG_FORMULA, BALANCED = ZIGZAG

Cell = tuple[int, int]


class MissingData(ValueError):
    """The paper quotes a number that the measurements do not hold."""


class CellTable:
    """Values by strategy and (seq_len, percentage), out of `rows`; `what` names them in errors.

    strategies: those that were measured in every cell.
    """

    def __init__(self, what: str, rows: pd.DataFrame) -> None:
        self._what = what
        self.lengths = sorted(map(int, rows.seq_len.unique()))
        self.percentages = sorted(map(int, rows.percentage.unique()))
        every = rows.groupby("strategy").size()
        self.strategies = [name for name in STRATEGIES if every.get(name) == every.max()]
        self._rows = {
            (row["strategy"], int(row["seq_len"]), int(row["percentage"])): row for row in rows.to_dict("records")
        }

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __call__(self, name: str, cell: Cell, column: str = "latency_ms"):
        """The value of `column`. Raises MissingData, naming the cell, if it is missing or NaN."""
        value = self._rows.get((name, *cell), {}).get(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise MissingData(f"{self._what}: no {column} of strategy {name} at {cell[0]} tokens and {cell[1]} %")
        return value

    @property
    def grid(self) -> list[Cell]:
        """All cells: (seq_len, percentage)."""
        return [(n, p) for n in self.lengths for p in self.percentages]

    @property
    def throttled(self) -> list[Cell]:
        """The cells in which ranks are unequal."""
        return [cell for cell in self.grid if cell[1] < 100]

    @property
    def extreme(self) -> Cell:
        """The longest length, with the slow rank at its slowest."""
        return self.lengths[-1], self.percentages[0]

    @property
    def equal(self) -> Cell:
        """The longest length, with all ranks at full speed."""
        return self.lengths[-1], 100

    def at(self, *, length: int | None = None, percentage: int | None = None) -> list[Cell]:
        """The throttled cells of one length, or of one percentage."""
        return [
            cell for cell in self.throttled if cell[0] == (length or cell[0]) and cell[1] == (percentage or cell[1])
        ]

    def over(self, name: str, column: str = "latency_ms", cells: list[Cell] | None = None) -> list:
        """The value in each of `cells`, the throttled ones unless given."""
        return [self(name, cell, column) for cell in (self.throttled if cells is None else cells)]

    def ratios(self, name: str, other: str, cells: list[Cell] | None = None) -> list[float]:
        """The time of `name` over that of `other` in each cell."""
        return [a / b for a, b in zip(self.over(name, cells=cells), self.over(other, cells=cells), strict=True)]

    def wins(self, name: str, other: str) -> int:
        """In how many throttled cells `name` is faster than `other`."""
        return sum(ratio < 1 for ratio in self.ratios(name, other))

    def fastest(self, cell: Cell) -> Strategy:
        """The fastest strategy in a cell."""
        return min(self.strategies, key=lambda name: self(name, cell))

    def pooled(self, name: str, cell: Cell) -> float:
        """Latency of the split that `name` makes: the median over all strategies of its layout that make it."""
        split, layout = self(name, cell, "block_lens"), Strategy(name).layout
        same = [each for each in self.strategies if each.layout == layout and self(each, cell, "block_lens") == split]
        return median(self(each, cell) for each in same)


def ring_cells(results: Results, system: str = "ring", module: str = "attention") -> CellTable:
    """Cells of one system and module on one platform: rested calls, the slow rank last."""
    rows = headline(results.cells)
    rows = rows[(rows.system == system) & (rows.module == module)]
    return CellTable(f"platform {results.platform}, module {module}, system {system}", rows)


def prefill_cells(results: Results, *orders: str) -> CellTable:
    """Cells of a whole model's prefill whose ranks are in one of these orders."""
    rows = results.model
    rows = rows[(rows.phase == "prefill") & rows.order.isin(orders)]
    return CellTable(f"platform {results.platform}, prefill of a model, {' or '.join(orders)}", rows)
