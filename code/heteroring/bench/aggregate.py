"""From the files of a platform's jobs to its tables: derived/measurements.csv, cells.csv, profile.csv and so on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd

from heteroring.bench.metrics import cells, profile_cells
from heteroring.bench.model_metrics import model_cells, trace_table
from heteroring.bench.model_records import ModelRow, TraceRow
from heteroring.bench.provenance import merge, read_json, write_json
from heteroring.bench.records import Measurement, ProfileRow, read_rows, write_rows
from heteroring.files import atomic_path

Row = TypeVar("Row")

# A whole model's job leaves rows and a trace; the profile that its cost model was fitted to lies in model/profile.
_JOBS = {"bench": "*.csv", "profile": "*.csv", "model": "pct-*.csv", "model/profile": "*.csv"}


def aggregate(folder: str | os.PathLike[str]) -> list[Path]:
    """Read bench/*.csv and profile/*.csv of a platform's folder and write its tables; return what was written.

    Whole models, model/pct-*.csv and model/trace-*.csv, are read where there are any. The records beside the CSVs are
    merged into provenance.json, which is left alone if it says the same already. Nothing is written unless every
    input is sound. Raises ValueError, naming the file, if it is not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    measurements = _rows(folder, "bench", Measurement)
    profile = _rows(folder, "profile", ProfileRow)
    tables = {"cells": cells(measurements), "profile": profile_cells(profile)}
    if _files(folder, "model"):
        tables["model"] = model_cells(_rows(folder, "model", ModelRow))
    if _files(folder, "model", "trace-*.csv"):
        tables["trace"] = trace_table(_rows(folder, "model", TraceRow, "trace-*.csv"))
    record = merge({path: read_json(folder / f"{path}.json") for path in _jobs(folder)})

    derived = folder / "derived"
    write_rows(derived / "measurements.csv", measurements)
    for name, table in tables.items():
        write_table(derived / f"{name}.csv", table)
    written = [derived / "measurements.csv", *(derived / f"{name}.csv" for name in tables)]
    record_path = folder / "provenance.json"
    if not record_path.exists() or read_json(record_path) != record:
        write_json(record_path, record)
        written.append(record_path)
    return written


def write_table(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all; the entries of a tuple are separated by spaces, NaN is empty."""
    text = table.map(lambda value: _spaced(value) if isinstance(value, tuple) else value)
    with atomic_path(path) as temporary:
        text.to_csv(temporary, index=False, float_format="%.9g", lineterminator="\n")


def _spaced(values: tuple) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _files(folder: Path, stage: str, pattern: str = "") -> list[Path]:
    return sorted((folder / stage).glob(pattern or _JOBS[stage]))


def _jobs(folder: Path) -> list[str]:
    return [f"{stage}/{path.stem}" for stage in _JOBS for path in _files(folder, stage)]


def _rows(folder: Path, stage: str, row_type: Callable[..., Row], pattern: str = "") -> list[Row]:
    files = _files(folder, stage, pattern)
    if not files:
        raise ValueError(f"{folder / stage} holds no {pattern or '.csv'} file: nothing has been measured")
    return [row for path in files for row in read_rows(path, row_type)]
