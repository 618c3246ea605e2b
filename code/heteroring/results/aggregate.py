"""Aggregation of a platform's jobs into tables: derived/measurements.csv, cells.csv, profile.csv and others."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from heteroring.files import atomic_path
from heteroring.results.metrics import cells, profile_cells
from heteroring.results.model_metrics import model_cells, trace_table
from heteroring.results.model_rows import ModelRow, TraceRow
from heteroring.results.provenance import merge, read_record, write_json
from heteroring.results.rows import Measurement, ProfileRow, Row, read_rows, write_rows

# A whole model's job leaves rows and a trace; the profile that its cost model was fitted to lies in model/profile.
_JOBS = {"bench": "[!.]*.csv", "profile": "[!.]*.csv", "model": "pct-*.csv", "model/profile": "[!.]*.csv"}
_OF_WHOLE_MODELS = ("model", "trace")


def aggregate(
    folder: str | os.PathLike[str],
    percentages: Collection[int] | None = None,
    bench: Collection[str] | None = None,
    model: Collection[str] | None = None,
) -> list[Path]:
    """Write the tables of a platform from its jobs.

    Read are bench/*.csv, profile/*.csv and, where there are any, model/pct-*.csv and model/trace-*.csv. The records
    beside them are merged into provenance.json, which is not rewritten if its content is the same. Tables of whole
    models that an earlier grid had, and this one has not, are deleted. Nothing is written unless every input is valid.

    Args:
        folder: The platform's folder.
        percentages: Percentages of the profiles to read: the file pct-NNN.csv of each must exist. None for all files.
        bench: Names of the jobs of the ring to read, as of `percentages`.
        model: Names of the jobs of whole models to read, which may be none.

    Returns:
        The paths of what was written.

    Raises:
        ValueError: Naming the file, if an input is invalid or missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    jobs = _jobs(folder, percentages, bench, model)
    measurements = _rows(folder, "bench", jobs, Measurement)
    profile = _rows(folder, "profile", jobs, ProfileRow)
    tables = {"cells": cells(measurements), "profile": profile_cells(profile)}
    if jobs["model"]:
        blocks = read_rows(jobs["model/profile"], ProfileRow)
        tables["model"] = model_cells(_rows(folder, "model", jobs, ModelRow), blocks)
        if traces := read_rows(_traces(jobs["model"]), TraceRow):
            tables["trace"] = trace_table(traces)
    records = {path.relative_to(folder).with_suffix("").as_posix(): path for paths in jobs.values() for path in paths}
    record = merge({name: read_record(path.with_suffix(".json")) for name, path in records.items()})
    record_path = folder / "provenance.json"
    try:
        changed = not record_path.exists() or read_record(record_path) != record
    except ValueError as error:
        raise ValueError(f"{error}: delete it to have it written anew") from error

    derived = folder / "derived"
    write_rows(derived / "measurements.csv", measurements)
    for name, table in tables.items():
        write_table(derived / f"{name}.csv", table)
    for name in set(_OF_WHOLE_MODELS) - set(tables):
        (derived / f"{name}.csv").unlink(missing_ok=True)
    written = [derived / "measurements.csv", *(derived / f"{name}.csv" for name in tables)]
    if changed:
        write_json(record_path, record)
        written.append(record_path)
    return written


def write_table(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all.

    Args:
        path: Path of the CSV.
        table: The table; entries of tuples are separated by spaces, and NaN is empty.
    """
    text = table.map(lambda value: _spaced(value) if isinstance(value, tuple) else value)
    with atomic_path(path) as temporary:
        text.to_csv(temporary, index=False, float_format="%.9g", lineterminator="\n")


def _spaced(values: tuple) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _jobs(
    folder: Path,
    percentages: Collection[int] | None,
    bench: Collection[str] | None,
    model: Collection[str] | None,
) -> dict[str, list[Path]]:
    """The rows to read, by stage."""
    profiles = None if percentages is None else [f"pct-{percentage:03d}" for percentage in percentages]
    # The block of a whole model is profiled at the percentages of its ranks, which its jobs' names begin with.
    ranks = [name.partition(".")[0].removeprefix("pct-").split("-") for name in model or ()]
    blocks = None if model is None else {f"pct-{each}" for percentages in ranks for each in percentages}
    chosen = {"profile": profiles, "bench": bench, "model": model, "model/profile": blocks}
    return {stage: _files(folder / stage, pattern, chosen[stage]) for stage, pattern in _JOBS.items()}


def _files(folder: Path, pattern: str, names: Collection[str] | None) -> list[Path]:
    if names is None:
        return sorted(folder.glob(pattern))
    paths = [folder / f"{name}.csv" for name in sorted(set(names))]
    for path in paths:
        if not os.path.isfile(path):  # Path.is_file raises if the name is too long
            raise ValueError(f"{path} does not exist, and it was asked for")
    return paths


def _traces(rows: list[Path]) -> list[Path]:
    """Beside the rows of whole models, where a layer was traced."""
    paths = [path.with_name(path.name.replace("pct-", "trace-")) for path in rows]
    return [path for path in paths if path.is_file()]


def _rows(folder: Path, stage: str, jobs: dict[str, list[Path]], row_type: type[Row]) -> list[Row]:
    if not jobs[stage]:
        raise ValueError(f"{folder / stage} holds no .csv file: nothing has been measured")
    return read_rows(jobs[stage], row_type)
