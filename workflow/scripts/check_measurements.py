"""Are a platform's measurements whole and plausible? Lists every violation, not only the first."""

import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import pandas as pd

from heteroring.bench.records import MODULES
from heteroring.results.tables import read_table
from violations import end_if_any

# One cell of the grid: what was measured, before repetitions.
CELL = ["module", "strategy", "seq_len", "percentages"]


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in str(text).split())


def strategy_of(row: Mapping) -> str:
    """`layout/allocator`, or `alone/rankR` for the baseline in which rank R holds every token.

    Peers measured beside the ring carry their name in front, so that they are cells of their own.
    """
    if row["system"] == "alone":
        lens = integers(row["block_lens"])
        return f"alone/rank{lens.index(max(lens))}"
    strategy = f"{row['layout']}/{row['allocator']}"
    return strategy if row["system"] == "ring" else f"{row['system']} {strategy}"


def describe(cell: tuple) -> str:
    module, strategy, seq_len, percentages = cell
    return f"{module} {strategy} at {seq_len} tokens and {percentages} %"


def expected_cells(measurements: pd.DataFrame, grid: Mapping | None) -> set[tuple]:
    """The cells that `grid` asks for; without one, every combination of what a module's rows mention.

    Only the ring and the ranks alone must fill the grid; other systems are extras.
    """
    if grid is not None:
        strategies = [*grid["strategies"], "alone/rank0", "alone/rank1"]
        percentages = [f"100 {percentage}" for percentage in grid["percentages"]]
        return {
            cell
            for module, seq_lens in grid["seq_lens"].items()
            for cell in product([module], strategies, seq_lens, percentages)
        }
    cells: set[tuple] = set()
    own = measurements[measurements["system"].isin(["ring", "alone"])]
    for module, rows in own.groupby("module"):
        cells |= set(
            product(
                [module],
                rows["strategy"].unique(),
                rows["seq_len"].unique().tolist(),
                rows["percentages"].unique(),
            )
        )
    return cells


def grid_violations(measurements: pd.DataFrame, grid: Mapping | None) -> Iterator[str]:
    """Missing and unexpected cells, and cells without every repetition exactly once."""
    expected = expected_cells(measurements, grid)
    repetitions = grid["repetitions"] if grid else int(measurements["repetition"].max()) + 1
    wanted = list(range(repetitions))
    found = {cell: sorted(rows["repetition"]) for cell, rows in measurements.groupby(CELL)}
    for cell in sorted(expected - set(found)):
        yield f"missing: {describe(cell)}"
    for cell, repeated in found.items():
        if grid is not None and cell not in expected:
            yield f"not in the configured grid: {describe(cell)}"
        elif repeated != wanted:
            yield f"repetitions {repeated} instead of {wanted}: {describe(cell)}"


def row_violations(measurements: pd.DataFrame) -> Iterator[str]:
    """Token sums, signs, and times that cannot be."""
    for row in measurements.to_dict("records"):
        cell = f"{describe(tuple(row[key] for key in CELL))}, repetition {row['repetition']}"
        lens, busy = integers(row["block_lens"]), [float(part) for part in str(row["busy_ms"]).split()]
        ranks = len(integers(row["percentages"]))
        if len(lens) != ranks or len(busy) != ranks:
            yield f"not one entry per rank in block_lens {lens} or busy_ms {busy}: {cell}"
        if sum(lens) != row["seq_len"] or min(lens) < 0:
            yield f"block_lens {lens} do not share out {row['seq_len']} tokens: {cell}"
        if not 0 < row["latency_ms"] < float("inf"):
            yield f"latency {row['latency_ms']} ms is not positive and finite: {cell}"
        if not all(0 <= ms < float("inf") for ms in busy):
            yield f"busy_ms {busy} are not all finite and non-negative: {cell}"


def bound_violations(cells: pd.DataFrame, noise: float) -> Iterator[str]:
    """No ring is faster than every rank busy all the time, but for noise."""
    scored = cells[cells["bound_fraction"].notna()]
    for row in scored[scored["bound_fraction"] > 1 + noise].to_dict("records"):
        yield (
            f"bound fraction {row['bound_fraction']:.3f} exceeds 1 by more than {noise}: "
            f"{describe(tuple(row[key] for key in CELL))}"
        )
    if scored.empty:
        yield "no cell has a bound fraction"


def violations(measurements: pd.DataFrame, cells: pd.DataFrame, grid: Mapping | None, noise: float) -> list[str]:
    """Every rule that the tables break, one line each.

    grid: percentages (of the last of two ranks), seq_lens of each module, strategies, repetitions. None for recorded
    measurements, which are held against the grid that they span themselves.
    """
    if measurements.empty:
        return ["no measurements"]
    measurements = measurements.assign(strategy=[strategy_of(row) for row in measurements.to_dict("records")])
    return [
        *grid_violations(measurements, grid),
        *row_violations(measurements),
        *bound_violations(cells, noise),
    ]


def modules_of(measurements: pd.DataFrame) -> str:
    """What was measured, and what was not."""
    found = [module for module in MODULES if module in set(measurements["module"])]
    absent = [module for module in MODULES if module not in found]
    return f"modules: {', '.join(found)}" + (f"; not measured: {', '.join(absent)}" if absent else "")


def main(measurements: Path, cells: Path, report: Path, grid: Mapping | None, noise: float) -> None:
    """Write `report`, or exit with status 1 after printing what is wrong."""
    rows, table = read_table(measurements), read_table(cells)
    found = violations(rows, table, grid, noise)
    end_if_any(found, [measurements, cells], "bench")
    report.write_text(
        f"{len(rows)} repetitions in {len(table)} cells: every cell there, every repetition once, "
        "token sums right, times positive\n"
        f"{modules_of(rows)}\n"
        f"largest bound fraction: {table['bound_fraction'].max():.3f}, allowed: {1 + noise:g}\n"
    )


if __name__ == "__main__":
    sys.stdout = sys.stderr = Path(snakemake.log[0]).open("w")  # noqa: SIM115
    main(
        Path(snakemake.input.measurements),
        Path(snakemake.input.cells),
        Path(snakemake.output.report),
        snakemake.params.grid,
        snakemake.params.noise,
    )
