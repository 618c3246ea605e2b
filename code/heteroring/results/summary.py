"""Summarise the rows of a job of `heteroring bench` or `heteroring model`, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from heteroring.results.metrics import cells
from heteroring.results.model_metrics import model_cells
from heteroring.results.model_rows import ModelRow
from heteroring.results.rows import Measurement
from heteroring.results.strategy import parts_of

_SYSTEMS = {"context_parallel": "torch context_parallel"}


def summary(rows: Sequence[Measurement]) -> Table:
    """A line for each cell: the split, the median latency in ms, and the capacity bound over it."""
    measured = cells(rows)
    modules = list(dict.fromkeys(measured["module"]))
    table = _titled(measured, "median of")
    if len(modules) > 1:
        table.add_column("module", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("what", no_wrap=True)
    for column in ("split", "ms", "of bound"):
        table.add_column(column, justify="right", no_wrap=True)
    for (module, seq_len), group in measured.groupby(["module", "seq_len"], sort=False):
        for row in group.itertuples():
            fraction = "" if pd.isna(row.bound_fraction) else f"{row.bound_fraction:.3f}"
            texts = (str(seq_len), _name(row), " ".join(map(str, row.block_lens)), f"{row.latency_ms:.4g}", fraction)
            table.add_row(*([module] if len(modules) > 1 else []), *texts)
        table.add_section()
    return table


def model_summary(rows: Sequence[ModelRow]) -> Table:
    """A line for each prefill and decode: the split, the median in ms, and the limit over it.

    The limit of a prefill is the capacity bound; that of a decode is the time to read weights and KV once.
    """
    measured = model_cells(rows)
    table = _titled(measured, "median of up to")
    for column in ("phase", "tokens", "what", "split", "ms", "limit", "of limit"):
        table.add_column(column, justify="left" if column in ("phase", "what") else "right", no_wrap=True)
    for _, group in measured.groupby(["phase", "seq_len"], sort=False):
        for row in group.itertuples():
            limit = row.bound_ms if row.phase == "prefill" else row.limit_ms
            known = [] if pd.isna(limit) else [f"{limit:.4g}", f"{limit / row.latency_ms:.3f}"]
            split = " ".join(map(str, row.block_lens))
            table.add_row(row.phase, str(row.seq_len), _name(row), split, f"{row.latency_ms:.4g}", *known)
        table.add_section()
    return table


_RECORDED = [
    *("module", "system", "strategy", "condition", "seq_len", "percentages", "block_lens", "repetitions"),
    *("latency_ms", "latency_p20_ms", "latency_p80_ms", "bound_ms", "bound_fraction"),
]


def records(rows: Sequence[Measurement]) -> list[dict[str, Any]]:
    """A dictionary for each cell, in JSON types: its name, and the latency that `cells` gives, in ms."""
    return json.loads(cells(rows)[_RECORDED].to_json(orient="records"))


def _titled(measured: pd.DataFrame, of: str) -> Table:
    [percentages] = set(measured["percentages"])
    speeds = ", ".join(f"{percentage} %" for percentage in percentages)
    return Table(title=f"Ranks at {speeds}; {of} {measured['repetitions'].max()}", box=SIMPLE_HEAD)


def _name(row: Any) -> str:
    layout, split = parts_of(row.strategy)
    who = split.replace("rank", "rank ")
    if row.system == "fms":
        return f"FMS's generate on {who}"
    if row.system in ("alone", "sdpa"):
        return f"{who} alone" + ", torch" * (row.system == "sdpa")
    if row.system == "subset":
        return f"{layout}, the {split.removeprefix('fastest')} fastest ranks"
    return _SYSTEMS.get(row.system, row.strategy)
