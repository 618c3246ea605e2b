"""The evidence for claims: the record, short tables and predictions beside it, and the public study's record."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from heteroring.digits import significant
from heteroring.figures.plots import simulated_scaling, simulated_slow_rank
from heteroring.figures.plots.simulation_error import simulated_cells
from heteroring.figures.simulated import platform_of
from heteroring.planning.recorded_platform import RecordedPlatform
from heteroring.results.model_metrics import decode_gains
from heteroring.results.rank_percentages import order_of
from heteroring.results.results import Results, slow_last
from heteroring.results.tables import read_table
from paper.cells import BALANCED, EVEN, CellTable, prefill_cells, ring_cells
from paper.study import Study, read

REPRODUCED, PARTLY, NOT, _ = VERDICTS = ("reproduced", "partly", "not", "not tested")
LONG, MEDIUM = 65536, 16384
MIDDLE = 50
ORDERS = ("slow last", "slow first")
RESTED_FIRST = {"condition": "rested", "order": "slow first"}
# Jobs of the ring's rested cells and of whole models, by their names in the provenance.
PAIRED_JOBS = r"(bench|model)/pct(-\d+)+\.job-\d+"


@dataclass(frozen=True)
class Finding:
    """`verdict`: one of VERDICTS. `ours`: the finding, with its range. `first`: the same with the slow rank first."""

    verdict: str
    ours: str
    first: str = ""


@dataclass(frozen=True)
class Evidence:
    """`results`: the recorded platform. `odd_lengths`, `decoded`: tables of data/h200x2_short, cells as text.

    `predictions` are the tables of data/predictions by name. `folder` is the platform's, beside which the records of
    experiments lie.
    """

    results: Results
    study: Study
    odd_lengths: pd.DataFrame
    decoded: pd.DataFrame
    predictions: dict[str, pd.DataFrame]
    folder: Path

    @classmethod
    def load(cls, record: Path, published: Path, short: Path, predicted: Path) -> "Evidence":
        """Read all records.

        Args:
            record: Folder of the recorded platform.
            published: Folder of the public study's record.
            short: Folder of the short runs.
            predicted: Folder of the predictions.

        Returns:
            The evidence.

        Raises:
            ValueError: Naming the file, if one is missing or cannot be read.
        """
        tables = (read_table(short / f"{name}.csv") for name in ("odd_lengths", "decode_model"))
        predictions = {
            name: read_table(predicted / f"{name}.csv") for name in ("h200x2_slow_first", "h200x4", "h200x8")
        }
        return cls(Results.load(record), read(published), *tables, predictions, record)

    @cached_property
    def beside(self) -> dict[str, Results]:
        """Records of experiments, by the suffix of their names to the platform's: green, heldout, ablation."""
        found = self.folder.parent.glob(f"{self.folder.name}?*/provenance.json")
        return {path.parent.name.removeprefix(self.folder.name): Results.load(path.parent) for path in found}

    @cached_property
    def call(self) -> CellTable:
        """Rested calls of the ring, the slow rank last."""
        return ring_cells(self.results)

    @cached_property
    def call_first(self) -> CellTable:
        """Cells of the attention call, the slow rank first."""
        return CellTable("the record, slow rank first", self.recorded(**RESTED_FIRST))

    @cached_property
    def layer(self) -> CellTable:
        """Rested layers over the ring, the slow rank last."""
        return ring_cells(self.results, module="fms")

    @cached_property
    def layer_first(self) -> CellTable:
        """Rested layers over the ring, the slow rank first."""
        return CellTable("the record, layer, slow rank first", self.recorded("", "fms", **RESTED_FIRST))

    @cached_property
    def prefill(self) -> CellTable:
        """A whole model's prefill, the slow rank last."""
        return prefill_cells(self.results, "equal", "slow last")

    @cached_property
    def prefill_first(self) -> CellTable:
        """A whole model's prefill, the slow rank first."""
        return prefill_cells(self.results, "slow first")

    @cached_property
    def decode(self) -> pd.DataFrame:
        """Decode over the ring beside that on the better rank alone (`decode_gains`), the slow rank last."""
        return decode_gains(slow_last(self.results.model), BALANCED)

    @cached_property
    def platform(self) -> RecordedPlatform:
        """The profile of one rank, to simulate rings of."""
        return platform_of(self.results)

    @cached_property
    def scaling(self) -> dict[str, list[float]]:
        """Simulated bound fractions of zigzag splits over ranks of two kinds in turn, by the number of ranks."""
        ranks, length = simulated_scaling.RANKS, simulated_scaling.AT_LENGTH
        return {
            name: [simulated_scaling.fraction(self.platform, name, each, length) for each in ranks]
            for name in simulated_scaling.LOOKS
        }

    @cached_property
    def one_slow_rank(self) -> dict[tuple[str, str], list[float]]:
        """Simulated latencies of rings with one slow rank, over those without it, by strategy and order."""
        return simulated_slow_rank.over_equal(self.platform)

    @cached_property
    def simulated(self) -> pd.DataFrame:
        """Cells of the call with `simulated_ms`, from the profile of one rank, beside latency_ms."""
        return simulated_cells(self.results)

    @cached_property
    def simulation_errors(self) -> pd.Series:
        """Median relative error of the simulated cells, by length."""
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
        """Cells of the ring.

        Args:
            beside: Name of a record of experiments; empty for the platform's own.
            module: "attention" or "fms".
            **where: Values that columns must have.

        Returns:
            The cells.
        """
        rows = (self.beside[beside] if beside else self.results).cells
        rows = rows[(rows.system == "ring") & (rows.module == module)]
        for column, value in where.items():
            rows = rows[[each == value for each in rows[column]]]
        return rows

    @cached_property
    def both_orders(self) -> pd.DataFrame:
        """Rested calls of the ring whose ranks are unequal."""
        rows = self.recorded(condition="rested")
        return rows[rows.order.isin(ORDERS)]

    def orders(self, strategy: str, column: str, length: int = LONG) -> pd.DataFrame:
        """One column of a strategy's rested calls in both orders.

        Args:
            strategy: The strategy.
            column: The column.
            length: Tokens.

        Returns:
            Its values by percentage, in columns "slow last" and "slow first".
        """
        rows = self.both_orders
        rows = rows[(rows.strategy == strategy) & (rows.seq_len == length)]
        return rows.pivot(index="percentage", columns="order", values=column).dropna()

    @cached_property
    def by_pair(self) -> pd.DataFrame:
        """Median times of rested calls ("bench") and prefills ("model") within the jobs of each pair of GPUs.

        Of even contiguous and balanced zigzag shards, by stage, strategy, length, percentage and pair, a column per
        order; where the pair measured both.
        """
        rows = pd.concat(
            read_table(self.folder / f"{name}.csv").assign(
                stage=found[1],
                pair=" ".join(gpu["uuid"] for gpu in job["gpus"]),
                percentage=min(job["percentages"]),
                order=order_of(job["percentages"]),
            )
            for name, job in self.results.provenance["jobs"].items()
            if (found := re.fullmatch(PAIRED_JOBS, name))
        )
        rows["strategy"] = rows.layout + "/" + rows.allocator
        timed = (rows.module == "attention") | (rows.phase == "prefill")
        rows = rows[timed & (rows.system == "ring") & rows.order.isin(ORDERS) & rows.strategy.isin([EVEN, BALANCED])]
        by = ["stage", "strategy", "seq_len", "percentage", "pair"]
        return rows.pivot_table("latency_ms", by, "order", "median").dropna()

    @cached_property
    def condition_fractions(self) -> pd.Series:
        """Bound fractions of balanced zigzag calls that are not rested, at the longest length, by `condition`."""
        rows = self.recorded(strategy=BALANCED, seq_len=LONG)
        return rows[rows.condition != "rested"].set_index("condition").bound_fraction


def holds(condition: bool, ours: str) -> Finding:
    """The finding on a claim of the paper's own, which either holds or does not."""
    return Finding(REPRODUCED if condition else NOT, ours)


def number(value: float) -> str:
    """A number with three significant digits."""
    return significant(value, thousands=",")


def span(values) -> str:
    """The range of the values: `0.95`, or `0.95 to 1.01`."""
    ends = [number(min(values)), number(max(values))]
    return " to ".join(dict.fromkeys(ends))


def points(part: float) -> str:
    """A difference of two fractions in percentage points."""
    return f"{100 * part:.2g} points"


def percent(part: float) -> str:
    """A fraction as a percentage."""
    return f"{100 * part:.2g} %" if abs(part) < 0.995 else f"{100 * part:.0f} %"
