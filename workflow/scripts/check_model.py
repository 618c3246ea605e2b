"""Check that a platform's language-model measurements are complete and plausible, and list every violation.

    python workflow/scripts/check_model.py MODEL.csv TRACE.csv REPORT.txt GRID NOISE

GRID is the grid that must have been measured, in JSON, or null for the grid that the rows span; NOISE is how far a
bound fraction may exceed 1.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import pandas as pd

from heteroring.results.model_rows import DECODED, TRACED
from heteroring.results.results import read_derived
from heteroring.results.strategy import alone_name
from violations import bound_violations, end_if_any

CELL = ["phase", "strategy", "batch", "seq_len", "percentages"]
TRACE = ["strategy", "seq_len", "percentages", "rank"]
# Kinds of events that every traced layer has.
EVENTS = ("layer", "ready", "block")


def describe(cell: Mapping) -> str:
    """The name of a cell or, where it has a rank, of that rank's layer."""
    what = f"trace of {cell['strategy']}" if "rank" in cell else f"{cell['phase']} of {cell['strategy']}"
    what += f" ({cell['batch']} sequences)" if cell.get("batch", 1) > 1 else ""
    where = f"{what} at {cell['seq_len']} tokens and {' '.join(map(str, cell['percentages']))} %"
    return f"{where}, rank {cell['rank']}" if "rank" in cell else where


def expected_cells(cells: pd.DataFrame, grid: Mapping | None) -> set[tuple]:
    """(phase, strategy, batch, seq_len, percentages) of all cells of `grid`, or of the grid that `cells` span."""
    prefills, decodes = (cells[cells["phase"] == phase] for phase in ("prefill", "decode"))
    strategies, seq_lens = prefills["strategy"].unique(), prefills["seq_len"].unique()
    percentages, decoded = prefills["percentages"].unique(), decodes["strategy"].unique()
    decoded_at = decodes["percentages"].unique()
    alone = {*decodes[["batch", "seq_len"]].itertuples(index=False, name=None)} - {(1, max(seq_lens))}
    if grid is not None:
        ranks_alone = [alone_name(rank) for rank in range(len(grid["percentages"][0]))]
        strategies = [*grid["strategies"], *ranks_alone]
        seq_lens = grid["seq_lens"]
        percentages = decoded_at = [tuple(each) for each in grid["percentages"]]
        decoded = [DECODED, *ranks_alone] if grid["new_tokens"] else []
        alone = {(each["batch"], seq_len) for each in grid["decode"] for seq_len in each["seq_lens"]}
    last = [each for each in decoded_at if each[0] == max(each)]
    return {
        *product(["prefill"], strategies, [1], seq_lens, percentages),
        *product(["decode"], decoded, [1], [max(seq_lens)], percentages),
        *(("decode", name, *cell, ranks) for name in decoded for cell in alone for ranks in last),
    }


def cell_violations(cells: pd.DataFrame, grid: Mapping | None) -> Iterator[str]:
    """Missing and unexpected cells, and cells that lack a job."""
    found = set(cells[CELL].itertuples(index=False, name=None))
    expected = expected_cells(cells, grid)
    for cell in sorted(expected - found):
        yield f"missing: {describe(dict(zip(CELL, cell, strict=True)))}"
    for cell in sorted(found - expected):
        yield f"not in the configured grid: {describe(dict(zip(CELL, cell, strict=True)))}"
    if grid is not None:
        for cell in cells[(cells["jobs"] < grid["jobs"]) & (cells["phase"] == "prefill")].to_dict("records"):
            yield f"{cell['jobs']} of {grid['jobs']} jobs: {describe(cell)}"


def expected_traces(cells: pd.DataFrame) -> set[tuple]:
    """(strategy, seq_len, percentages, rank) of the layers that must have been traced: of every rank with tokens."""
    longest = cells[(cells["phase"] == "prefill") & (cells["seq_len"] == cells["seq_len"].max())]
    return {
        (cell["strategy"], cell["seq_len"], cell["percentages"], rank)
        for cell in longest[longest["strategy"].isin(TRACED)].to_dict("records")
        for rank, tokens in enumerate(cell["block_lens"])
        if tokens
    }


def trace_violations(trace: pd.DataFrame, expected: set[tuple]) -> Iterator[str]:
    """Missing layers, and layers that lack an event or have one outside their time."""
    found = dict(list(trace.groupby(TRACE)))
    for key in sorted(expected - set(found)):
        yield f"missing: {describe(dict(zip(TRACE, key, strict=True)))}"
    for key, events in found.items():
        where = describe(dict(zip(TRACE, key, strict=True)))
        kinds = list(events["kind"])
        if kinds.count("layer") != 1 or not set(EVENTS) <= set(kinds):
            yield f"{sorted(kinds)} are not one layer with its KV arrivals and backend calls: {where}"
            continue
        layer = events[events["kind"] == "layer"].iloc[0]
        if events["start_ms"].min() < layer["start_ms"] or events["stop_ms"].max() > layer["stop_ms"]:
            yield f"something happens outside the layer: {where}"


def violations(cells: pd.DataFrame, trace: pd.DataFrame, grid: Mapping | None, noise: float) -> list[str]:
    """Every rule that the tables break.

    Args:
        cells: Cells of whole models.
        trace: Events of traced layers.
        grid: `Commands.model_grid`; None for recorded measurements.
        noise: How far a bound fraction may be above 1.

    Returns:
        A line for each.
    """
    return [
        *cell_violations(cells, grid),
        *bound_violations(cells[cells["system"] == "ring"], noise, describe),
        *trace_violations(trace, expected_traces(cells)),
    ]


def main(model: Path, trace: Path, report: Path, grid: Mapping | None, noise: float) -> None:
    """Write `report`, or exit with status 1 after printing all violations."""
    cells = read_derived(model)
    found = violations(cells, read_derived(trace), grid, noise)
    end_if_any(found, [model, trace], "model")
    ring = cells[cells["system"] == "ring"]
    report.write_text(
        f"{len(cells)} cells: every one there, and the traced layers there and whole\n"
        f"largest bound fraction: {ring['bound_fraction'].max():.3f}, allowed: {1 + noise:g}\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]), float(sys.argv[5]))
