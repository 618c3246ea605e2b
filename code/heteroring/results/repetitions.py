"""Grouping of repetitions into cells, which tables of calls and of language models share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import pandas as pd

from heteroring.results.strategy import name_of


class Split(Protocol):
    """A row of something measured under one split of a prompt."""

    @property
    def system(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def allocator(self) -> str: ...
    @property
    def model_source(self) -> str: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def block_lens(self) -> tuple[int, ...]: ...


def strategy_of(row: Split) -> str:
    """What `row` is called: the name of its strategy, or alone/rank0 for rank 0 alone."""
    if row.system == "alone":
        return f"alone/rank{row.block_lens.index(row.seq_len)}"
    return name_of(row.layout, row.allocator, row.model_source)


def listing(values: pd.Series) -> str:
    """The different values, in words."""
    return ", ".join(str(value) for value in values.unique())


def check_cell(
    group: pd.DataFrame, cell: dict[str, object], same: Iterable[str], repetition: Sequence[str] = ("repetition",)
) -> None:
    """Raise ValueError, naming `cell`, if its repetitions differ in a column of `same`, or one occurs twice.

    Columns `repetition` tell one from another. They may never differ in what computed and carried them.
    """
    where = ", ".join(f"{name} {value}" for name, value in cell.items())
    for column in (*same, "block", "transport"):
        if group[column].nunique() > 1:
            raise ValueError(f"repetitions differ in {column} ({listing(group[column])}): {where}")
    if group.duplicated(list(repetition)).any():
        raise ValueError(f"a repetition occurs twice: {where}")


def latency_of(group: pd.DataFrame) -> dict[str, object]:
    """How many repetitions there are, and the median of their latency with its 20th and 80th percentile."""
    latency = group["latency_ms"]
    return {
        "repetitions": len(group),
        "latency_ms": latency.median(),
        "latency_p20_ms": latency.quantile(0.2),
        "latency_p80_ms": latency.quantile(0.8),
    }
