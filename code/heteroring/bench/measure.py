"""Run one job with a progress bar, print its summary, and write its rows and their provenance."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

from heteroring.bench.base_job import Job
from heteroring.bench.progress import progress_bar
from heteroring.bench.telemetry import telemetry
from heteroring.bench.tracking import check_tracker, track_job
from heteroring.files import atomic_path
from heteroring.interrupts import raise_on_ctrl_c
from heteroring.launch.external_ranks import leads
from heteroring.results.git import Commit, read_commit
from heteroring.results.provenance import dump_json, provenance, settings_of
from heteroring.results.rows import dump_rows


def measure(
    stage: Any,
    job: Job,
    hang_timeout: float,
    output: Path | None,
    description: str,
    show: Callable[[Any], None] = lambda done: None,
    write_beside: Callable[[Any], None] = lambda done: None,
    track: str = "none",
) -> None:
    """Run a job, show its results, and write them.

    Provenance is written first and rows last, so that rows never exist without the provenance that belongs to them. Of
    ranks that torchrun or srun started, rank 0 alone shows, writes and logs.

    Args:
        stage: The module of a measurement, which has `steps(job)` and `run(job, ...)`.
        job: What is measured.
        hang_timeout: Seconds without a heartbeat after which a rank hangs.
        output: Path of the rows, a CSV; None to write nothing.
        description: Text of the progress bar.
        show: Called with the results before anything is written.
        write_beside: Called with the results before the provenance is written, if there is an `output`.
        track: One of `heteroring.bench.tracking.TRACKERS`, which logs the job in the end.

    Raises:
        ValueError: For a hang_timeout that is not positive and finite, and for a job that cannot be measured.
        OSError: If writing fails, saying what is lost; an older result is kept.
    """
    check_tracker(track)
    if not 0 < hang_timeout < inf:
        raise ValueError(f"--hang-timeout {hang_timeout} is not a positive, finite number of seconds")
    commit = read_commit()  # before measuring: a commit made during the measurement must not be recorded
    raise_on_ctrl_c()
    start = time.monotonic()
    with progress_bar(description, stage.steps(job)) as on_progress, telemetry(job.device_kind) as gpus:
        done = stage.run(job, hang_timeout=hang_timeout, on_progress=on_progress)
    if not leads():
        return
    took = {"seconds": time.monotonic() - start, "gpus": gpus}
    try:
        show(done)
    finally:  # rows are written even if the terminal is gone
        record = _record(job, commit, done, took)
        if output is not None:
            _write(record, done, output, write_beside)
        if track != "none":
            track_job(output.stem if output else description, job, record, done)


def _record(job: Job, commit: Commit, done: Any, took: dict[str, Any]) -> dict[str, Any]:
    return provenance(
        platform=job.platform,
        throttle=job.throttle,
        percentages=job.percentages,
        ranks=done.ranks,
        settings=settings_of(job),
        commit=commit,
        row_count=len(done.rows),
        notes=done.notes,
        **took,
    )


def _write(record: dict[str, Any], done: Any, output: Path, write_beside: Callable[[Any], None]) -> None:
    # Everything is on the disk before the older result is removed; then the provenance is renamed, and the rows last.
    try:
        with atomic_path(output) as rows:
            dump_rows(rows, done.rows)
            with atomic_path(output.with_suffix(".json")) as beside:
                dump_json(beside, record)
                write_beside(done)
                output.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OSError(f"{error}: the {len(done.rows)} rows that were measured for {output} are lost") from error
