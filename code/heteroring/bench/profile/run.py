"""The run of a profile job: operators timed on one throttled rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from random import Random
from typing import Any, NamedTuple

import torch

from heteroring.bench.profile.operators import Operator, check_kinds, operators, sizes
from heteroring.bench.shape import Shape, check_lengths, check_repetitions
from heteroring.bench.timing import elapsed_ms, no_garbage_collection
from heteroring.kernels.backend import check_backend
from heteroring.launch.device import DEVICE_TYPES, Device
from heteroring.launch.heartbeat import advance
from heteroring.launch.launch import HANG_TIMEOUT, Rank, check_ranks, launch
from heteroring.results.provenance import RankReport, report
from heteroring.results.rows import ProfileRow

# A repetition calls an operator until this much time has gone by: a small one is too short for one call to tell.
REPETITION_MS = 10.0
_MOST_CALLS = 1000
DEFAULT_KINDS = ("matmul", "attention", "fold")


@dataclass(frozen=True)
class ProfileJob:
    """What `heteroring profile` measures on one rank at one percentage.

    platform: what it runs on; label: what its rows call that. kinds: what to time (see
    heteroring.bench.profile.operators), matmuls at `sizes` and everything else at `seq_lens`; the lengths of what
    no kind asks for may be empty. fms_seq_lens: those of the kind `layer`, if not seq_lens. model:
    architecture/variant whose transformer block the kind `block` is. Raises ValueError, naming value and rule, for
    anything that could not be measured as asked.
    """

    platform: str
    label: str
    throttle: str
    percentage: int
    sizes: tuple[int, ...]
    seq_lens: tuple[int, ...]
    kinds: tuple[str, ...] = DEFAULT_KINDS
    shape: Shape = field(default_factory=Shape)
    model: str = ""
    block: str = "auto"
    repetitions: int = 5
    warmup: int = 1
    seed: int = 0
    fms_seq_lens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if "matmul" in self.kinds or self.sizes:
            check_lengths("sizes", self.sizes)
        if set(self.kinds) - {"matmul"} or self.seq_lens:
            check_lengths("seq_lens", self.seq_lens)
        if self.fms_seq_lens:
            check_lengths("fms_seq_lens", self.fms_seq_lens)
            if "layer" not in self.kinds:
                raise ValueError("fms_seq_lens is given, but kind 'layer' is not measured")
        check_repetitions(self.repetitions, self.warmup, self.seed)
        check_backend(self.block, DEVICE_TYPES.get(self.platform))
        check_kinds(self)


class Profile(NamedTuple):
    """The rows of a job, and what its rank ran on."""

    rows: list[ProfileRow]
    ranks: list[RankReport]
    notes: tuple[str, ...] = ()


def steps(job: ProfileJob) -> int:
    """Repetitions that the job makes, without those of joins: what a progress bar counts to."""
    return sum(len(sizes(kind, job)) for kind in job.kinds) * (max(1, job.warmup) + job.repetitions)


def run(
    job: ProfileJob, *, hang_timeout: float = HANG_TIMEOUT, on_progress: Callable[[int], None] | None = None
) -> Profile:
    """Measure `job`. Raises ValueError for what cannot be measured, and what `launch` raises."""
    check_ranks(job.platform, job.throttle, (job.percentage,))
    [(times, rank_report)] = launch(
        _measure,
        job,
        platform=job.platform,
        throttle=job.throttle,
        percentages=(job.percentage,),
        hang_timeout=hang_timeout,
        on_progress=on_progress,
    )
    rows = [_row(job, *key, flops, latency_ms) for key, (flops, latency_ms) in sorted(times.items())]
    return Profile(rows, [rank_report])


def _measure(rank: Rank, job: ProfileJob) -> tuple[dict[tuple[str, int, int], tuple[int, float]], RankReport]:
    """(kind, size, repetition) -> (operations, milliseconds); operators are interleaved, in an order drawn anew."""
    timed = [operator for kind in job.kinds for operator in operators(kind, rank, job)]
    calls = {}
    times = {}
    with torch.no_grad():
        for operator in timed:
            once = _verified(operator, rank.device)
            advance()
            for _ in range(job.warmup - 1):
                once = _time(operator.call, 1, rank.device)
                advance()
            if once < 10 * REPETITION_MS:  # the first call of a small operator is mostly start-up
                once = _time(operator.call, 1, rank.device)
            calls[operator] = min(_MOST_CALLS, max(1, ceil(REPETITION_MS / once)))
        for repetition in range(job.repetitions):
            Random(f"{job.seed} {repetition}").shuffle(timed)
            with no_garbage_collection():
                for operator in timed:
                    latency_ms = _time(operator.call, calls[operator], rank.device)
                    times[operator.kind, operator.size, repetition] = (operator.flops, latency_ms)
                    advance()
    return times, report(rank)


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
        platform=job.label,
        kind=kind,
        size=size,
        batch=shape.batch if shape else 0,
        heads=shape.heads if shape else 0,
        kv_heads=shape.kv_heads if shape else 0,
        head_dim=shape.head_dim if shape else 0,
        dtype=job.shape.dtype,
        causal=kind not in ("matmul", "fold"),
        throttle=job.throttle,
        percentage=job.percentage,
        repetition=repetition,
        latency_ms=latency_ms,
        tflops=flops / latency_ms / 1e9,
    )
