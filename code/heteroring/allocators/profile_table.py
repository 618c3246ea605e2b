"""Profile CSVs read into one table of medians per operator, by length and percentage."""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from heteroring.results.kinds import KINDS
from heteroring.results.rows import ProfileRow, read_rows
from heteroring.words import choices

# What models of speed are fitted to.
SOURCES = ("matmul", "attention")

# Fields of a Table that a ProfileTable has, too.
_SHARED = ("platform", "setup", "lengths", "percentages", "rows")
# What a model says that it was fitted to.
_SETUP = ("dtype", "batch", "heads", "kv_heads", "head_dim", "causal")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ProfileTable:
    """Median speeds of one operator on one platform.

    speeds[i][j] is the median over repetitions, in TFLOP/s, at lengths[i] (tokens for `attention`, n of an
    n x n x n product for `matmul`) and percentages[j] (nominal, 1 to 100); both axes ascend. `setup` holds
    what all rows share (dtype, heads and the like); `rows` counts the rows read.
    """

    source: str
    platform: str
    setup: dict[str, str]
    lengths: tuple[int, ...]
    percentages: tuple[float, ...]
    speeds: tuple[tuple[float, ...], ...]
    rows: int


class Table(NamedTuple):
    """Medians of a column over an operator's repetitions, values[i][j] at lengths[i] and percentages[j]."""

    platform: str
    setup: dict[str, str]
    lengths: tuple[int, ...]
    percentages: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    rows: int


def read_profile(paths: PathLike | Iterable[PathLike], source: str | None) -> ProfileTable:
    """The rows of `source` in profile CSVs as one table.

    `source` None means matmul where the files hold it, as in the published study, and attention otherwise.

    Raises ValueError for whatever `read_rows` refuses, and for files without rows of `source`.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"source {source!r} is unknown: choose {choices(source, SOURCES)}")
    names, rows = _read(paths)
    source = source or ("matmul" if any(row.kind == "matmul" for row in rows) else "attention")
    table = _table(names, rows, source, "tflops")
    return ProfileTable(source=source, speeds=table.values, **{name: getattr(table, name) for name in _SHARED})


def read_latencies(paths: PathLike | Iterable[PathLike]) -> dict[str, Table]:
    """The latencies in profile CSVs by kind, of every kind that they hold. Raises ValueError as `read_profile` does."""
    names, rows = _read(paths)
    return {kind: _table(names, rows, kind, "latency_ms") for kind in KINDS if any(row.kind == kind for row in rows)}


def _read(paths: PathLike | Iterable[PathLike]) -> tuple[str, list[ProfileRow]]:
    """All rows, and the names of the files for what is said about them."""
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not files:
        raise ValueError("no profile CSV is given: at least one is needed")
    return ", ".join(map(str, files)), read_rows(files, ProfileRow)


def _table(names: str, everything: list[ProfileRow], kind: str, column: str) -> Table:
    """The medians of `column` in the rows of `kind`."""
    rows = [row for row in everything if row.kind == kind]
    if not rows:
        found = ", ".join(sorted({row.kind for row in everything}))
        raise ValueError(f"{names}: no row of kind {kind!r}, only of {found}")
    cells = defaultdict(list)
    for row in rows:
        cells[row.size, row.percentage].append(getattr(row, column))
    lengths = tuple(sorted({length for length, _ in cells}))
    percentages = tuple(sorted({percentage for _, percentage in cells}))
    values = tuple(tuple(median(cells[length, share]) for share in percentages) for length in lengths)
    setup = {name: str(getattr(rows[0], name)) for name in _SETUP}
    return Table(rows[0].platform, setup, lengths, tuple(map(float, percentages)), values, len(rows))
