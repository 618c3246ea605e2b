"""The run of a profile job: operators timed on one throttled rank."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from random import Random
from typing import Any

import torch

from heteroring.bench.base_job import JobResult
from heteroring.bench.profile.job import ProfileJob
from heteroring.bench.profile.operators import OPERATORS, Operator
from heteroring.bench.timing import elapsed_ms, no_garbage_collection
from heteroring.launch.device import Device
from heteroring.launch.heartbeat import advance, beat
from heteroring.launch.launch import Rank
from heteroring.results.provenance import RankReport, report
from heteroring.results.rows import ProfileRow

# A repetition calls an operator for at least this long: a single call of a small one is too short to time.
REPETITION_MS = 10.0
_MOST_CALLS = 1000


def steps(job: ProfileJob) -> int:
    """The number of repetitions that the job makes, without those of kind `join`, for a progress bar."""
    return sum(len(job.sizes_of(kind)) for kind in job.kinds) * (max(1, job.warmup) + job.repetitions)


def run(job: ProfileJob, **watching: Any) -> JobResult:
    """Measure a profile job.

    Args:
        job: What is measured.
        **watching: hang_timeout (seconds) and on_progress, as for `Job.launch`.

    Returns:
        Rows, and the report of the rank.

    Raises:
        ValueError: For a job that cannot be measured.
        RunError: As `launch` does.
    """
    [(times, rank_report)] = job.launch(_measure, **watching)
    rows = [_row(job, *key, flops, latency_ms) for key, (flops, latency_ms) in sorted(times.items())]
    return JobResult(rows, [rank_report])


def _measure(rank: Rank, job: ProfileJob) -> tuple[dict[tuple[str, int, int], tuple[int, float]], RankReport]:
    """(kind, size, repetition) -> (operations, milliseconds); operators are interleaved, in an order drawn anew."""
    timed = _operators(rank, job)
    calls = {}
    times = {}
    with torch.no_grad():
        for operator in timed:
            once = _verified(operator, rank.device)
            _counted(operator)
            for _ in range(job.warmup - 1):
                once = _time(operator.call, 1, rank.device)
                _counted(operator)
            if once < 10 * REPETITION_MS:  # the first call of a small operator is mostly start-up
                once = _time(operator.call, 1, rank.device)
            calls[operator] = min(_MOST_CALLS, max(1, ceil(REPETITION_MS / once)))
        for repetition in range(job.repetitions):
            Random(f"{job.seed} {repetition}").shuffle(timed)
            with no_garbage_collection():
                for operator in timed:
                    latency_ms = _time(operator.call, calls[operator], rank.device)
                    times[operator.kind, operator.size, repetition] = (operator.flops, latency_ms)
                    _counted(operator)
    return times, report(rank)


def _counted(operator: Operator) -> None:
    """Tell the watchdog of a repetition, and the progress bar if `steps` counts it."""
    beat() if operator.kind == "join" else advance()


def _operators(rank: Rank, job: ProfileJob) -> list[Operator]:
    makers = OPERATORS
    if {"layer", "block"} & set(job.kinds):
        from heteroring.bench.profile import fms_operators  # imports IBM's FMS

        makers = makers | {"layer": fms_operators.layers, "block": fms_operators.blocks}
    return [operator for kind in job.kinds for operator in makers[kind](rank, job)]


def _verified(operator: Operator, device: Device) -> float:
    """Milliseconds of the operator's first call, once its result has been found right."""
    results: list[Any] = []
    once = _time(lambda: results.append(operator.call()), 1, device)
    if operator.verify:
        operator.verify(*results)
    return once


def _time(call: Callable[[], object], calls: int, device: Device) -> float:
    """Milliseconds of one call, as the mean over `calls`."""
    return elapsed_ms(call, device, calls) / calls


def _row(job: ProfileJob, kind: str, size: int, repetition: int, flops: int, latency_ms: float) -> ProfileRow:
    shape = None if kind == "matmul" else job.shape
    return ProfileRow(
        platform=job.platform,
        kind=kind,
        size=size,
        batch=shape.batch if shape else 0,
        heads=shape.heads if shape else 0,
        kv_heads=shape.kv_heads if shape else 0,
        head_dim=shape.head_dim if shape else 0,
        dtype=job.shape.dtype,
        causal=kind not in ("matmul", "fold"),
        throttle=job.throttle,
        percentage=job.percentages[0],
        repetition=repetition,
        latency_ms=latency_ms,
        tflops=flops / latency_ms / 1e9,
    )
