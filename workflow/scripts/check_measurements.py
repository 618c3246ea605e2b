"""Check that a platform's measurements are complete and plausible, and list every violation.

    python workflow/scripts/check_measurements.py MEASUREMENTS.csv CELLS.csv REPORT.txt GRID NOISE

GRID is the grid that must have been measured, in JSON, or null for the grid that the rows of each job span. NOISE is
how far a bound fraction may exceed 1.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import pandas as pd

from heteroring.results.metrics import measurement_table
from heteroring.results.results import read_derived
from heteroring.results.rows import MODULES, Measurement, read_rows
from heteroring.results.strategy import alone_name
from violations import bound_violations, end_if_any

# Columns that identify a cell of the grid in one job.
CELL = ["module", "condition", "strategy", "seq_len", "percentages", "job"]
# Columns that identify a job, whose rows fill a grid of their own.
SPAN = ["module", "condition", "percentages", "job"]


def describe(cell: Mapping) -> str:
    """The cell in words, for a violation."""
    percentages = " ".join(map(str, cell["percentages"]))
    where = f"{cell['module']} {cell['strategy']} at {cell['seq_len']} tokens and {percentages} %, {cell['condition']}"
    return f"{where}, job {cell['job']}" if "job" in cell else where


def expected_cells(measurements: pd.DataFrame, grid: Mapping | None) -> set[tuple]:
    """The cells of `grid`; without one, every combination of values in the rows of a job.

    Only the ring and the ranks alone must fill the grid; other systems are extras.
    """
    cells: set[tuple] = set()
    if grid is not None:
        for job in grid["jobs"]:
            strategies = [*job["strategies"], *(alone_name(rank) for rank in range(len(job["percentages"])))]
            for module, seq_lens in job["seq_lens"].items():
                percentages = [tuple(job["percentages"])]
                cells |= set(product([module], [job["condition"]], strategies, seq_lens, percentages, [job["job"]]))
        return cells
    for (module, condition, percentages, job), rows in measurements.groupby(SPAN):
        spanned = (rows[column].unique().tolist() for column in ("strategy", "seq_len"))
        cells |= set(product([module], [condition], *spanned, [percentages], [job]))
    return cells


def grid_violations(measurements: pd.DataFrame, grid: Mapping | None) -> Iterator[str]:
    """Missing cells; beside a grid, unexpected ones, and those that do not have its repetitions.

    That a job has the same repetitions in all cells, each once, was checked when the rows were read.
    """
    own = measurements[measurements["system"].isin(["ring", "alone"])]
    expected = expected_cells(own, grid)
    found = {cell: sorted(rows["repetition"]) for cell, rows in own.groupby(CELL)}
    for cell in sorted(expected - set(found)):
        yield f"missing: {describe(dict(zip(CELL, cell, strict=True)))}"
    if grid is None:
        return
    wanted = list(range(grid["repetitions"]))
    for key, repeated in found.items():
        cell = dict(zip(CELL, key, strict=True))
        if key not in expected:
            yield f"not in the configured grid: {describe(cell)}"
        elif repeated != wanted:
            yield f"repetitions {repeated} instead of {wanted}: {describe(cell)}"


def violations(measurements: pd.DataFrame, cells: pd.DataFrame, grid: Mapping | None, noise: float) -> list[str]:
    """Every rule that the tables break.

    Args:
        measurements: One row per repetition.
        cells: One row per cell.
        grid: Repetitions, and jobs, each with its percentages, condition, number (job), strategies and the seq_lens of
            each module. None for recorded measurements, each job of which is compared with the grid that its rows span.
        noise: How far a bound fraction may be above 1.

    Returns:
        A line for each.
    """
    return [*grid_violations(measurements, grid), *bound_violations(cells, noise, describe)]


def modules_of(measurements: pd.DataFrame) -> str:
    """A line on the modules that were measured, and those that were not."""
    found = [module for module in MODULES if module in set(measurements["module"])]
    absent = [module for module in MODULES if module not in found]
    return f"modules: {', '.join(found)}" + (f"; not measured: {', '.join(absent)}" if absent else "")


def main(measurements: Path, cells: Path, report: Path, grid: Mapping | None, noise: float) -> None:
    """Write `report`, or exit with status 1 after printing all violations."""
    rows, table = measurement_table(read_rows(measurements, Measurement)), read_derived(cells)
    found = violations(rows, table, grid, noise)
    end_if_any(found, [measurements, cells], "bench")
    report.write_text(
        f"{len(rows)} repetitions in {len(table)} cells: every cell there, every repetition once\n"
        f"{modules_of(rows)}\n"
        f"largest bound fraction: {table['bound_fraction'].max():.3f}, allowed: {1 + noise:g}\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]), float(sys.argv[5]))
