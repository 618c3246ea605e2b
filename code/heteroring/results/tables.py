"""Reading of CSV files without a row type, such as derived tables."""

from __future__ import annotations

import os
from collections.abc import Callable

import pandas as pd

from heteroring.results.reader import read_lines

# Names that people choose, and lists with one entry per rank: always read as text.
TEXT = frozenset(
    ("platform", "architecture", "variant", "percentages", "block_lens", "busy_ms", "peak_memory_gb", "dtype")
)
_PARSERS: tuple[Callable[[str], object], ...] = (
    int,
    lambda text: float(text or "nan"),
    {"True": True, "False": False}.__getitem__,
)


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table in a CSV. A column is integers, numbers (an empty field is NaN) or booleans where all fields are.

    Everything else is text as it stands, and so are the columns TEXT: a platform may be called `null`, `nan` or `4090`.
    Raises ValueError as `read_lines` does.
    """
    columns, rows = read_lines(path)
    fields = zip(*(fields for _, fields in rows), strict=True)
    return pd.DataFrame({name: _column(name, texts) for name, texts in zip(columns, fields, strict=True)})


def _column(name: str, texts: tuple[str, ...]) -> list:
    for parse in () if name in TEXT else _PARSERS:
        try:
            return [parse(text) for text in texts]
        except (ValueError, KeyError):
            continue
    return list(texts)
