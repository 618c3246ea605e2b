"""What claims are judged by: the record, short tables beside it, and the public study's record."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from heteroring.figures.plots.simulation_error import simulated_cells
from heteroring.results.results import Results
from heteroring.results.tables import read_table
from paper.cells import BALANCED, CellTable, model_cells, ring_cells
from paper.study import Study, read

REPRODUCED, PARTLY, NOT, NOT_TESTED = VERDICTS = ("reproduced", "partly", "not", "not tested")
SHORT_LENGTH = 65536
MIDDLE = 50
ORDERS = ("slow last", "slow first")


@dataclass(frozen=True)
class Finding:
    """`verdict`: one of VERDICTS. `ours`: what was found, with its range. `first`: the same, the slow rank first."""

    verdict: str
    ours: str
    first: str = ""


@dataclass(frozen=True)
class Evidence:
    """`results`: the recorded platform. `order`, `sustained` and `replayed` (decode_model.csv): the tables of
    data/h200x2_short, cells as text.

    `folder` is the platform's, beside which records of experiments of their own may lie.
    """

    results: Results
    study: Study
    order: pd.DataFrame
    sustained: pd.DataFrame
    replayed: pd.DataFrame = field(default_factory=pd.DataFrame)
    folder: Path | None = None

    @classmethod
    def load(cls, record: Path, published: Path, short: Path) -> "Evidence":
        """Raises ValueError, naming the file, if one is missing or cannot be read."""
        names = ("rank_order", "sustained", "decode_model")
        tables = (read_table(short / f"{name}.csv") for name in names)
        return cls(Results.load(record), read(published), *tables, record)

    @cached_property
    def beside(self) -> dict[str, Results]:
        """Records of experiments, by what their names add to the platform's: green, heldout, ablation."""
        found = self.folder.parent.glob(f"{self.folder.name}?*/provenance.json") if self.folder else ()
        return {path.parent.name.removeprefix(self.folder.name): Results.load(path.parent) for path in found}

    @cached_property
    def call(self) -> CellTable:
        return ring_cells(self.results)

    @cached_property
    def layer(self) -> CellTable:
        return ring_cells(self.results, module="fms")

    @cached_property
    def prefill(self) -> CellTable:
        return model_cells(self.results, "prefill")

    @cached_property
    def decode(self) -> CellTable:
        return model_cells(self.results, "decode")

    @cached_property
    def simulated(self) -> pd.DataFrame:
        """Cells of the call with `simulated_ms`, from the profile of one rank, beside latency_ms."""
        return simulated_cells(self.results)

    @cached_property
    def simulation_errors(self) -> pd.Series:
        """Median error of the simulated cells, by length, in parts."""
        cells = self.simulated
        return (cells.simulated_ms / cells.latency_ms - 1).abs().groupby(cells.seq_len).median()

    @cached_property
    def middle_speeds(self) -> pd.Series:
        """Speed at MIDDLE percent relative to a whole GPU's, by kind of operator, at the largest size profiled."""
        profile = self.results.profile
        return profile[profile.percentage == MIDDLE].sort_values("size").groupby("kind").relative_speed.last()

    def recorded(
        self, beside: str = "", module: str = "attention", **where: str | int | tuple[int, ...]
    ) -> pd.DataFrame:
        """Cells of the ring with these values: of the record, or of one `beside`."""
        rows = (self.beside[beside] if beside else self.results).cells
        rows = rows[(rows.system == "ring") & (rows.module == module)]
        for column, value in where.items():
            rows = rows[[each == value for each in rows[column]]]
        return rows

    @cached_property
    def slow_first_times(self) -> pd.DataFrame:
        """The record's rested calls with the slow rank first: ms by length and percentage, a column per strategy."""
        rows = self.recorded(condition="rested", order="slow first")
        return rows.pivot(index=["seq_len", "percentage"], columns="strategy", values="latency_ms")

    @cached_property
    def both_recorded(self) -> set[int]:
        """The percentages at which the record has both orders."""
        rows = self.recorded(condition="rested")
        return set.intersection(*(set(rows.percentage[rows.order == order]) for order in ORDERS))

    @cached_property
    def both_orders(self) -> pd.DataFrame:
        """Columns percentage, strategy, seq_len, order, block_lens, latency_ms, bound_fraction, repetitions: of the
        record at percentages that it holds in both orders, of the short table at others."""
        recorded, both = self.recorded(condition="rested"), self.both_recorded
        pairs = self.order.percentages.map(lambda text: tuple(map(int, text.split())))
        short = self.order.assign(
            percentage=pairs.map(min),
            order=pairs.map(lambda pair: "slow last" if pair[0] > pair[1] else "slow first"),
            block_lens=self.order.block_lens.map(lambda text: tuple(map(int, text.split()))),
        )
        recorded = recorded[recorded.percentage.isin(both) & recorded.order.isin(ORDERS)]
        return pd.concat([recorded, short[~short.percentage.isin(both)]], ignore_index=True)

    def orders(self, strategy: str, column: str, length: int = SHORT_LENGTH) -> pd.DataFrame:
        """`column` by percentage, the two orders as columns "slow last" and "slow first"."""
        rows = self.both_orders
        rows = rows[(rows.strategy == strategy) & (rows.seq_len == length)]
        return rows.pivot(index="percentage", columns="order", values=column).dropna()

    @cached_property
    def condition_fractions(self) -> pd.Series:
        """Bound fractions of balanced zigzag calls that are not rested, at the longest length, by `condition`."""
        rows = self.recorded(strategy=BALANCED, seq_len=SHORT_LENGTH)
        return rows[rows.condition != "rested"].set_index("condition").bound_fraction


def holds(condition: bool, ours: str) -> Finding:
    """Of a claim of the paper's own, which either holds or does not."""
    return Finding(REPRODUCED if condition else NOT, ours)


def number(value: float) -> str:
    """Three digits of it: 0.0954, 43.2, 609."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


def span(values) -> str:
    """`0.95` or `0.95 to 1.01`."""
    ends = [number(min(values)), number(max(values))]
    return " to ".join(dict.fromkeys(ends))


def percent(part: float) -> str:
    return f"{100 * part:.2g} %" if abs(part) < 0.995 else f"{100 * part:.0f} %"
