"""Check that a platform's language-model measurements are complete and plausible, and list every violation.

    python workflow/scripts/check_model.py MODEL.csv TRACE.csv REPORT.txt GRID NOISE

GRID is what must have been measured, in JSON, null for what the rows span themselves; NOISE is how far a bound fraction
may exceed 1.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import pandas as pd

from heteroring.results.tables import read_table
from violations import end_if_any

# A layer of these is traced at the longest prompt, and these are among its events.
TRACED = ("contiguous/even", "zigzag/balanced")
EVENTS = ("layer", "ready", "block")


def describe(phase: str, strategy: str, seq_len: int, percentages: str) -> str:
    return f"{phase} of {strategy} at {seq_len} tokens and {percentages} %"


def describe_trace(strategy: str, seq_len: int, percentages: str, rank: int) -> str:
    return f"trace of {strategy} at {seq_len} tokens and {percentages} %, rank {rank}"


def expected_cells(cells: pd.DataFrame, grid: Mapping | None) -> set[tuple]:
    """(phase, strategy, seq_len, percentages) that `grid` asks for; without one, what the cells themselves span."""
    prefills = cells[cells["phase"] == "prefill"]
    strategies, seq_lens = prefills["strategy"].unique(), prefills["seq_len"].unique()
    percentages = cells["percentages"].unique()
    decoded = cells[cells["phase"] == "decode"]["strategy"].unique()
    if grid is not None:
        strategies = [*grid["strategies"], "alone/rank0", "alone/rank1"]
        seq_lens = grid["seq_lens"]
        percentages = [f"100 {percentage}" for percentage in grid["percentages"]]
        decoded = ["zigzag/balanced", "alone/rank0", "alone/rank1"] if grid["new_tokens"] else []
    return {
        *product(["prefill"], strategies, seq_lens, percentages),
        *product(["decode"], decoded, [max(seq_lens)], percentages),
    }


def cell_violations(cells: pd.DataFrame, grid: Mapping | None) -> Iterator[str]:
    """Missing and unexpected cells, times that cannot be, and ranks whose tokens do not add up."""
    found = set(cells[["phase", "strategy", "seq_len", "percentages"]].itertuples(index=False, name=None))
    expected = expected_cells(cells, grid)
    for cell in sorted(expected - found):
        yield f"missing: {describe(*cell)}"
    for cell in sorted(found - expected):
        yield f"not in the configured grid: {describe(*cell)}"
    for cell in cells.to_dict("records"):
        where = describe(cell["phase"], cell["strategy"], cell["seq_len"], cell["percentages"])
        lens = [int(part) for part in str(cell["block_lens"]).split()]
        if sum(lens) != cell["seq_len"]:
            yield f"block_lens {lens} do not share out {cell['seq_len']} tokens: {where}"
        if not 0 < cell["latency_ms"] < float("inf"):
            yield f"latency {cell['latency_ms']} ms is not positive and finite: {where}"


def bound_violations(cells: pd.DataFrame, noise: float) -> Iterator[str]:
    """No ring is faster than every rank busy all the time, but for noise."""
    scored = cells[cells["bound_fraction"].notna() & (cells["system"] == "ring")]
    for cell in scored[scored["bound_fraction"] > 1 + noise].to_dict("records"):
        where = describe(cell["phase"], cell["strategy"], cell["seq_len"], cell["percentages"])
        yield f"bound fraction {cell['bound_fraction']:.3f} exceeds 1 by more than {noise}: {where}"
    if scored.empty:
        yield "no cell has a bound fraction"


def expected_traces(cells: pd.DataFrame) -> set[tuple]:
    """(strategy, seq_len, percentages, rank) of which `cells` let one expect a layer: of every rank with tokens."""
    longest = cells[(cells["phase"] == "prefill") & (cells["seq_len"] == cells["seq_len"].max())]
    return {
        (cell["strategy"], cell["seq_len"], cell["percentages"], rank)
        for cell in longest[longest["strategy"].isin(TRACED)].to_dict("records")
        for rank, tokens in enumerate(str(cell["block_lens"]).split())
        if int(tokens)
    }


def trace_violations(trace: pd.DataFrame, expected: set[tuple]) -> Iterator[str]:
    """A rank's traced layer has a beginning, an end and all that lies between, inside them; and none is missing."""
    found = dict(list(trace.groupby(["strategy", "seq_len", "percentages", "rank"])))
    for key in sorted(expected - set(found)):
        yield f"missing: {describe_trace(*key)}"
    for key, events in found.items():
        where = describe_trace(*key)
        kinds = list(events["kind"])
        if kinds.count("layer") != 1 or not set(EVENTS) <= set(kinds):
            yield f"{sorted(kinds)} are not a layer with its ready and its blocks: {where}"
            continue
        layer = events[events["kind"] == "layer"].iloc[0]
        if events["start_ms"].min() < layer["start_ms"] or events["stop_ms"].max() > layer["stop_ms"]:
            yield f"something happens outside the layer: {where}"


def violations(cells: pd.DataFrame, trace: pd.DataFrame, grid: Mapping | None, noise: float) -> list[str]:
    """Every rule that the tables break, one line each. grid: strategies, seq_lens, percentages, new_tokens, or None."""
    return [
        *cell_violations(cells, grid),
        *bound_violations(cells, noise),
        *trace_violations(trace, expected_traces(cells)),
    ]


def main(model: Path, trace: Path, report: Path, grid: Mapping | None, noise: float) -> None:
    """Write `report`, or exit with status 1 after printing what is wrong."""
    cells = read_table(model)
    found = violations(cells, read_table(trace), grid, noise)
    end_if_any(found, [model, trace], "model")
    ring = cells[cells["system"] == "ring"]
    report.write_text(
        f"{len(cells)} cells: every one there, token sums right, times positive, the traced layers there and whole\n"
        f"largest bound fraction: {ring['bound_fraction'].max():.3f}, allowed: {1 + noise:g}\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]), float(sys.argv[5]))
