"""Grouping of repetitions into cells, which tables of calls and of language models share."""

from __future__ import annotations

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


def check_cell(group: pd.DataFrame, cell: dict[str, object]) -> None:
    """Raise ValueError, naming `cell`, if its repetitions, of one job or of several, were not of the same call."""
    for column in ("percentages", "block_lens", "clamped", "block", "transport"):
        if group[column].nunique() > 1:
            where = ", ".join(f"{name} {value}" for name, value in cell.items())
            values = ", ".join(map(str, group[column].unique()))
            raise ValueError(f"repetitions differ in {column} ({values}): {where}")


def latency_of(group: pd.DataFrame) -> dict[str, object]:
    """How many repetitions there are, and the median of their latency with its 20th and 80th percentile."""
    latency = group["latency_ms"]
    return {
        "repetitions": len(group),
        "latency_ms": latency.median(),
        "latency_p20_ms": latency.quantile(0.2),
        "latency_p80_ms": latency.quantile(0.8),
    }
