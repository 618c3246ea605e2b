"""How fast one throttled rank computes: square matmuls, as the published study did, and the attention itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from random import Random
from typing import NamedTuple

import torch

from heteroring.bench.device import DEVICE_TYPES, Device
from heteroring.bench.heartbeat import advance, beat
from heteroring.bench.launch import HANG_TIMEOUT, Rank, check_ranks, launch
from heteroring.bench.provenance import RankReport, report
from heteroring.bench.records import ProfileRow
from heteroring.bench.shape import Shape, check_lengths, check_repetitions
from heteroring.bench.timing import no_garbage_collection
from heteroring.kernels.block import check_block, resolve

# A repetition calls an operator until this much time has gone by: a small one is too short for one call to tell.
REPETITION_MS = 10.0
_MOST_CALLS = 1000


@dataclass(frozen=True)
class ProfileJob:
    """What `heteroring profile` measures on one rank at one percentage.

    platform: what it runs on; label: what its rows call that. sizes: n of n x n x n matmuls. seq_lens:
    lengths of causal attention. Raises ValueError, naming value and rule, for anything that could not be
    measured as asked.
    """

    platform: str
    label: str
    throttle: str
    percentage: int
    sizes: tuple[int, ...]
    seq_lens: tuple[int, ...]
    shape: Shape = field(default_factory=Shape)
    block: str = "auto"
    repetitions: int = 5
    warmup: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths("sizes", self.sizes)
        check_lengths("seq_lens", self.seq_lens)
        check_repetitions(self.repetitions, self.warmup)
        check_block(self.block, DEVICE_TYPES.get(self.platform))


class Operator(NamedTuple):
    """A call to profile, and the floating-point operations that its result takes."""

    kind: str
    size: int
    flops: int
    call: Callable[[], object]


class Profile(NamedTuple):
    """The rows of a job, and what its rank ran on."""

    rows: list[ProfileRow]
    ranks: list[RankReport]
    notes: tuple[str, ...] = ()


def steps(job: ProfileJob) -> int:
    """Repetitions that the job makes: what a progress bar counts to."""
    return (len(job.sizes) + len(job.seq_lens)) * (max(1, job.warmup) + job.repetitions)


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
    operators = [*_matmuls(rank, job), *_attentions(rank, job)]
    calls = {}
    times = {}
    with torch.no_grad():
        for operator in operators:
            for _ in range(max(1, job.warmup)):
                once = _time(operator.call, 1, rank.device)
                advance()
            if once < 10 * REPETITION_MS:  # the first call of a small operator is mostly start-up
                once = _time(operator.call, 1, rank.device)
            calls[operator] = min(_MOST_CALLS, max(1, ceil(REPETITION_MS / once)))
        for repetition in range(job.repetitions):
            Random(f"{job.seed} {repetition}").shuffle(operators)
            with no_garbage_collection():
                for operator in operators:
                    latency_ms = _time(operator.call, calls[operator], rank.device)
                    times[operator.kind, operator.size, repetition] = (operator.flops, latency_ms)
                    advance()
    return times, report(rank)


def _matmuls(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    matmul = rank.throttle.wrap(torch.matmul)
    generator = torch.Generator(rank.torch_device).manual_seed(job.seed)
    for n in job.sizes:
        a, b = torch.randn(2, n, n, generator=generator, device=rank.torch_device, dtype=job.shape.torch_dtype).unbind()
        yield Operator("matmul", n, 2 * n**3, partial(matmul, a, b, out=torch.empty_like(a)))


def _attentions(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    shape = job.shape
    block = rank.throttle.wrap(resolve(job.block, rank.torch_device, shape.torch_dtype, shape.head_dim))
    for seq_len in job.seq_lens:
        q, k, v = job.shape.inputs(seq_len, job.seed, rank.torch_device)
        call = partial(block, q, k, v, scale=job.shape.scale, causal_offset=0)
        yield Operator("attention", seq_len, job.shape.flops(seq_len), call)


def _time(call: Callable[[], object], calls: int, device: Device) -> float:
    """Milliseconds of one call, as the mean over `calls`."""
    device.synchronize()
    device.align(calls)
    start = device.mark()
    for _ in range(calls):
        beat()
        call()
    stop = device.mark()
    device.synchronize()
    return device.elapsed_ms(start, stop) / calls


def _row(job: ProfileJob, kind: str, size: int, repetition: int, flops: int, latency_ms: float) -> ProfileRow:
    shape = job.shape if kind == "attention" else None
    return ProfileRow(
        platform=job.label,
        kind=kind,
        size=size,
        batch=shape.batch if shape else 0,
        heads=shape.heads if shape else 0,
        kv_heads=shape.kv_heads if shape else 0,
        head_dim=shape.head_dim if shape else 0,
        dtype=job.shape.dtype,
        causal=shape is not None,
        throttle=job.throttle,
        percentage=job.percentage,
        repetition=repetition,
        latency_ms=latency_ms,
        tflops=flops / latency_ms / 1e9,
    )
