"""The reader of CSV files: the text of every field, or one error that names file, line and defect."""

from __future__ import annotations

import csv
import io
import os
from typing import NamedTuple

from heteroring.files import read_text
from heteroring.words import shown


class Lines(NamedTuple):
    """A CSV as text: the columns, and for each row its line in the file and its fields, one per column."""

    columns: list[str]
    rows: list[tuple[int, list[str]]]


def read_lines(path: str | os.PathLike[str], remedy: str = "") -> Lines:
    """The fields of a CSV. Line ends may be those of any system, and a byte order mark may come first.

    Args:
        path: Path of the CSV.
        remedy: Part of the error message where rows are missing.

    Returns:
        Columns and rows, as text.

    Raises:
        ValueError: Naming the file and, where there is one, the line, if the file cannot be read, is empty, has no rows
            or is cut short, if a column occurs twice, and if a row does not have one field per column.
    """
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path}: the file is empty{remedy}")
    if not text.endswith("\n"):
        raise ValueError(f"{path}: the last line has no line end: the file is cut short{remedy}")
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        columns, rows = next(reader), [(reader.line_num, fields) for fields in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not a line of a CSV ({error})") from error
    for name in columns:
        if columns.count(name) > 1:
            raise ValueError(f"{path}: column {shown(name)} is there {columns.count(name)} times")
    for line, fields in rows:
        if len(fields) != len(columns):
            raise ValueError(f"{path}, line {line}: {len(fields)} fields for {len(columns)} columns")
    if not rows:
        raise ValueError(f"{path}: no rows below the header{remedy}")
    return Lines(columns, rows)
