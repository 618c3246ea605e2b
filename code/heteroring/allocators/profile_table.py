"""Profile CSVs read into one table of medians per operator, by length and percentage."""

import os
from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple

from heteroring.results.operator_kinds import KINDS
from heteroring.results.rows import ProfileRow, read_rows
from heteroring.words import choices

# What models of speed are fitted to.
SOURCES = ("matmul", "attention")

# What a model says that it was fitted to.
_SETUP = ("dtype", "batch", "heads", "kv_heads", "head_dim", "causal")

PathLike = str | os.PathLike[str]


class ProfileTable(NamedTuple):
    """Medians of a column, TFLOP/s or latency in ms, over the repetitions of one operator on one platform.

    values[i][j] is the median at lengths[i] (n of an n x n x n product for `matmul`, else tokens) and percentages[j]
    (nominal, 1 to 100); both axes ascend. `source` is the operator, `setup` what all rows share (dtype, heads and the
    like), `rows` how many there are.
    """

    source: str
    platform: str
    setup: dict[str, str]
    lengths: tuple[int, ...]
    percentages: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    rows: int

    def axes(self) -> dict[str, Any]:
        """All fields but the values, by name, which a model fitted to the table keeps."""
        return {name: value for name, value in self._asdict().items() if name != "values"}


def read_profile(paths: PathLike | Iterable[PathLike], source: str | None) -> ProfileTable:
    """Read the speeds of one operator in profile CSVs as one table.

    Args:
        paths: One path of a CSV, or several.
        source: The operator; None for matmul where the files hold it, as in the published study, and attention
            otherwise.

    Returns:
        Medians in TFLOP/s by length and percentage.

    Raises:
        ValueError: For whatever `read_rows` refuses, and for files without rows of `source`.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"source {source!r} is unknown: choose {choices(source, SOURCES)}")
    names, rows = _read(paths)
    source = source or ("matmul" if any(row.kind == "matmul" for row in rows) else "attention")
    return _table(names, rows, source, "tflops")


def read_latencies(paths: PathLike | Iterable[PathLike]) -> dict[str, ProfileTable]:
    """The latencies in profile CSVs by kind, of every kind that they hold. Raises ValueError as `read_profile` does."""
    names, rows = _read(paths)
    return {kind: _table(names, rows, kind, "latency_ms") for kind in KINDS if any(row.kind == kind for row in rows)}


def _read(paths: PathLike | Iterable[PathLike]) -> tuple[str, list[ProfileRow]]:
    """All rows, and the names of the files for error messages."""
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not files:
        raise ValueError("no profile CSV is given: at least one is needed")
    return ", ".join(map(str, files)), read_rows(files, ProfileRow)


def _table(names: str, everything: list[ProfileRow], kind: str, column: str) -> ProfileTable:
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
    return ProfileTable(kind, rows[0].platform, setup, lengths, tuple(map(float, percentages)), values, len(rows))
