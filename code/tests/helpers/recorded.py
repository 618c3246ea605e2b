"""The recorded rings of two H200s."""

from functools import cache

from pandas import DataFrame

from heteroring.results.metrics import cells
from heteroring.results.rows import Measurement, read_rows
from tree import ROOT

RECORD = ROOT / "data" / "h200x2"


@cache
def rings() -> DataFrame:
    """Cells of rested calls of the attention."""
    rows = read_rows(sorted(RECORD.glob("bench/*.csv")), Measurement)
    table = cells([row for row in rows if (row.module, row.condition) == ("attention", "rested")])
    return table[table.system == "ring"]
