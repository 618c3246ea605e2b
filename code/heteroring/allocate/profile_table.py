"""Reading profile CSVs into one checked table of speeds: length x percentage."""

import csv
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

# What profiles hold: square matmuls, causal attention, folds of FOLD_KEYS keys into a running result, causal attention
# joined with FOLD_KEYS more keys in one pass, FMS's attention layer, and a whole transformer block.
KINDS = ("matmul", "attention", "fold", "join", "layer", "block")
FOLD_KEYS = 128

# What models of speed are fitted to.
SOURCES = ("matmul", "attention")

# Fields of a Table that a ProfileTable has, too.
_SHARED = ("platform", "setup", "lengths", "percentages", "rows")

PathLike = str | os.PathLike[str]

_REQUIRED = ("platform", "kind", "size", "percentage", "dtype", "latency_ms", "tflops")
_POSITIVE = ("size", "percentage", "latency_ms", "tflops")
# Rows that differ in one of these were measured on different things: a median over them would mean nothing.
_SETUP = ("platform", "dtype", "batch", "heads", "kv_heads", "head_dim", "causal")


@dataclass(frozen=True)
class ProfileTable:
    """Median speeds of one operator on one platform.

    speeds[i][j] is the median over repetitions, in TFLOP/s, at lengths[i] (tokens for `attention`, n of an
    n x n x n product for `matmul`) and percentages[j] (nominal, 1 to 100); both axes ascend. `setup` holds
    what all rows share (dtype, and heads and the like where the files tell); `rows` counts the rows read.
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
    """The rows of `source` in profile CSVs (raw repetitions or derived medians) as one table.

    `source` None means matmul where the files hold it, as in the published study, and attention otherwise.

    Raises ValueError, naming file, line, column and value, for a file that cannot be read, is empty or is
    cut short, a missing column, and a value that is not a positive finite number; and, naming what differs
    or lacks, for rows of several platforms, dtypes or shapes and for a (length, percentage) without rows.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"source {source!r} is unknown: choose one of {', '.join(SOURCES)}")
    names, rows = _read(paths)
    source = source or ("matmul" if any(row["kind"] == "matmul" for row in rows) else "attention")
    table = _table(names, rows, source, "tflops")
    return ProfileTable(source=source, speeds=table.values, **{name: getattr(table, name) for name in _SHARED})


def read_latencies(paths: PathLike | Iterable[PathLike]) -> dict[str, Table]:
    """The latencies in profile CSVs by kind, of every kind that they hold. Raises ValueError as `read_profile` does."""
    names, rows = _read(paths)
    return {kind: _table(names, rows, kind, "latency_ms") for kind in KINDS if any(row["kind"] == kind for row in rows)}


def _read(paths: PathLike | Iterable[PathLike]) -> tuple[str, list[dict]]:
    """All rows, and the names of the files for what is said about them."""
    files = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    if not files:
        raise ValueError("no profile CSV is given: at least one is needed")
    return ", ".join(map(str, files)), [row for file in files for row in _rows(file)]


def _table(names: str, everything: list[dict], kind: str, column: str) -> Table:
    """The medians of `column` in the rows of `kind`."""
    rows = [row for row in everything if row["kind"] == kind]
    if not rows:
        found = ", ".join(sorted({row["kind"] for row in everything}))
        raise ValueError(f"{names}: no row of kind {kind!r}, only of {found}")
    setup = {name: _single(rows, name) for name in _SETUP if all(name in row for row in rows)}
    # A whole rank may have been measured without the throttle of the others.
    if throttled := [row for row in rows if row.get("throttle", "none") != "none"]:
        _single(throttled, "throttle")
    cells = defaultdict(list)
    for row in rows:
        cells[int(row["size"]), row["percentage"]].append(row[column])
    lengths = tuple(sorted({length for length, _ in cells}))
    percentages = tuple(sorted({percentage for _, percentage in cells}))
    for length in lengths:
        for percentage in percentages:
            if (length, percentage) not in cells:
                raise ValueError(
                    f"{names}: no {kind} row of size {length} at {percentage:g} %: every size is needed at "
                    "every percentage"
                )
    values = tuple(tuple(median(cells[length, share]) for share in percentages) for length in lengths)
    return Table(setup.pop("platform"), setup, lengths, percentages, values, len(rows))


def _rows(path: Path) -> Iterator[dict]:
    """The rows of one file, numbers parsed and checked, each with its place ("file, line 3")."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read profile {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text file ({error})") from error
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    if not text.endswith("\n"):
        raise ValueError(f"{path}: the last line has no line end: the file is cut short")
    lines = text.splitlines()
    reader = csv.reader(lines)
    header = next(reader)
    for column in _REQUIRED:
        if column not in header:
            raise ValueError(f"{path}: column {column!r} is missing (found: {', '.join(header)})")
    if len(lines) == 1:
        raise ValueError(f"{path}: the file has a header and no rows")
    for fields in reader:
        place = f"{path}, line {reader.line_num}"
        if len(fields) != len(header):
            raise ValueError(f"{place}: {len(fields)} values for {len(header)} columns")
        row = dict(zip(header, fields, strict=True)) | {"place": place}
        if row["kind"] not in KINDS:
            raise ValueError(f"{place}: kind is {row['kind']!r}: choose one of {', '.join(KINDS)}")
        for column in _POSITIVE:
            row[column] = _positive(row, column)
        if not row["size"].is_integer():
            raise ValueError(f"{place}: size is {row['size']}: it must be a whole number")
        if not 1 <= row["percentage"] <= 100:
            raise ValueError(f"{place}: percentage is {row['percentage']:g}: it must lie in 1..100")
        yield row


def _positive(row: dict, column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{row['place']}: {column} is {row[column]!r}: it must be a positive number")
    return value


def _single(rows: list[dict], column: str) -> str:
    """The one value of `column` in `rows`."""
    first = rows[0]
    for row in rows:
        if row[column] != first[column]:
            raise ValueError(
                f"{column} is {first[column]!r} in {first['place']} and {row[column]!r} in {row['place']}: "
                "one model is fitted to rows of one platform, throttle, dtype and shape"
            )
    return first[column]
