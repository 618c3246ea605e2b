"""Shared parts of the checks of measurements: the rule on bound fractions, and the exit on violations."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd


def bound_violations(cells: pd.DataFrame, noise: float, describe: Callable[[Mapping], str]) -> Iterator[str]:
    """A line for each cell whose bound fraction exceeds 1 by more than `noise`."""
    scored = cells[cells["bound_fraction"].notna()]
    for cell in scored[scored["bound_fraction"] > 1 + noise].to_dict("records"):
        yield f"bound fraction {cell['bound_fraction']:.3f} exceeds 1 by more than {noise}: {describe(cell)}"
    if scored.empty:
        yield "no cell has a bound fraction"


def end_if_any(found: Sequence[str], tables: Sequence[Path], jobs: str) -> None:
    """Exit with status 1, naming all violations `found` in `tables`, unless there are none.

    jobs: the folder, inside the platform's, in which the measurements that `tables` were derived from lie.
    """
    if not found:
        return
    remedy = (
        f"If the machine was busy while it measured: delete the CSVs of these jobs in {jobs}/ of the "
        "platform's folder, and give the same command again."
    )
    sys.exit("\n".join([f"{len(found)} violations in {' and '.join(map(str, tables))}:", *found, remedy]))
