"""Logging to Weights & Biases where it is asked for: one run for each job, made when the job's files are written."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

TRACKERS = ("none", "wandb")
PROJECT = "heteroring"
_MODES = ("online", "offline")
_INIT_SECONDS, _FINISH_SECONDS = 30, 120


class _Stage(NamedTuple):
    """How rows of one type are logged: the table of cells, and the columns that name and show a cell in the summary."""

    name: str
    cells: Callable[..., pd.DataFrame]
    keys: tuple[str, ...]
    values: tuple[str, ...]


def check_tracker(name: str) -> None:
    """Check, without any connection, that measurements can be logged with the tracker `name`, one of TRACKERS.

    Raises ValueError for another name and, of wandb, without its package or for a WANDB_MODE that it does not have.
    """
    if name not in TRACKERS:
        raise ValueError(f"tracker {name!r} is unknown: choose one of {', '.join(TRACKERS)}")
    if name == "none":
        return
    if find_spec("wandb") is None:
        raise ValueError("tracker 'wandb' needs the package wandb, which is not installed: pip install wandb")
    mode = os.environ.get("WANDB_MODE")
    if mode and mode not in _MODES:
        raise ValueError(f"WANDB_MODE is {mode!r}: it must be {' or '.join(_MODES)}")


def track_job(name: str, job: Any, record: Mapping[str, Any], done: Any) -> None:
    """Log a job's results as a run, and say on stderr where it is, or why it could not be logged.

    Never raises for a failure of Weights & Biases: the measurements are already in files.

    Args:
        name: Name of the run.
        job: What was measured.
        record: Its provenance.
        done: Its results: rows, and a trace if there is one.
    """
    from heteroring.results.model_metrics import trace_table

    try:
        stage = _stage_of(done.rows)
        cells = stage.cells(done.rows)
        tables = {"cells": cells}
        if done.trace:
            tables["trace"] = trace_table(done.trace)
        provenance = {key: value for key, value in record.items() if key != "settings"}
        config = {**record["settings"], "provenance": provenance}
        said = log_run(stage.name, name, job.platform, config, tables, _summary(stage, cells))
    except Exception as error:  # of any type: W&B has many of its own, and files and connections fail, too
        said = f"the measurement is not tracked: {' '.join(str(error).split()) or type(error).__name__}"
    with suppress(OSError):
        print(f"heteroring: note: {said}", file=sys.stderr, flush=True)


def log_run(
    job_type: str,
    name: str,
    group: str,
    config: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    summary: Mapping[str, float] = {},
    images: Mapping[str, Path] = {},
) -> str:
    """Log one run to Weights & Biases.

    It goes to the account that is configured. Where there is none, where it cannot be reached, or where
    WANDB_MODE=offline says so, the run is kept in the folder `wandb` (of WANDB_DIR, else the current one).

    Args:
        job_type: Kind of the run.
        name: Name of the run.
        group: Name that related runs share.
        config: Settings.
        tables: Tables to log, by name.
        summary: Numbers to log, by name.
        images: Paths of pictures to log, by name.

    Returns:
        Where the run is, in words.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # crash reports to W&B
    import wandb

    # Neither console output nor code is logged: the provenance names command and commit.
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        job_type=job_type,
        name=name,
        group=group,
        config=dict(config),
        mode=_mode(wandb),
        settings=settings,
    ) as run:
        run.log(
            {
                **{key: _table(wandb, table) for key, table in tables.items()},
                **{key: wandb.Image(str(path)) for key, path in images.items()},
            }
        )
        run.summary.update(summary)
        where = shlex.quote(str(Path(run.dir).parent.resolve())) if run.offline else run.url
    return f"tracked in {where}: `wandb sync {where}` sends it" if run.offline else f"tracked at {where}"


def _mode(wandb: Any) -> str:
    """The mode that WANDB_MODE names; "offline" where that is "online" and W&B would have to prompt for a login."""
    mode = os.environ.get("WANDB_MODE") or "online"
    if mode != "online":
        return mode
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.Error:
        return "offline"


def _stage_of(rows: list) -> _Stage:
    from heteroring.results.metrics import cells, profile_cells
    from heteroring.results.model_metrics import model_cells
    from heteroring.results.model_rows import ModelRow
    from heteroring.results.rows import Measurement, ProfileRow

    split = ("system", "strategy", "seq_len")
    return {
        Measurement: _Stage("bench", cells, ("module", *split), ("latency_ms", "bound_fraction", "speedup")),
        ProfileRow: _Stage("profile", profile_cells, ("kind", "size"), ("latency_ms", "tflops")),
        ModelRow: _Stage("model", model_cells, ("phase", *split), ("latency_ms", "bound_fraction", "speedup")),
    }[type(rows[0])]


def _summary(stage: _Stage, cells: pd.DataFrame) -> dict[str, float]:
    """The values of each cell, by name: "attention/ring/zigzag/even/4096/latency_ms"."""
    return {
        "/".join([*(str(cell[key]) for key in stage.keys), value]): float(cell[value])
        for _, cell in cells.iterrows()
        for value in stage.values
        if cell[value] == cell[value]  # not NaN, the value of a metric whose reference was not measured
    }


def _table(wandb: Any, table: pd.DataFrame) -> Any:
    """A W&B table: lists with one entry per rank as text, separated by spaces as in CSVs, and None for NaN."""
    text = table.map(lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else value).astype(object)
    return wandb.Table(columns=list(text), data=text.where(text.notna(), None).values.tolist(), allow_mixed_types=True)
