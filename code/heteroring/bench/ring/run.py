"""The run of a ring job: all modules, lengths and strategies, interleaved in one process group."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from heteroring.bench.base_job import JobResult
from heteroring.bench.ring.job import BASELINES, RingCell, RingJob, cells_of, subsets
from heteroring.bench.ring.modules import Module, open_module
from heteroring.bench.timing import Busy, Times, no_garbage_collection, sustained_calls, timed
from heteroring.kernels.backend import BACKENDS, choose
from heteroring.launch.heartbeat import advance
from heteroring.launch.launch import Rank, check_ranks
from heteroring.results.provenance import RankReport, report
from heteroring.results.rows import Measurement
from heteroring.ring.transport.transport import choose_transport
from heteroring.ring.workload import kv_bytes

BASELINE_BACKEND = "cudnn"
_TRANSPORTS = {"alone": "none", "sdpa": "none", "context_parallel": "allgather"}


class _RankResult(NamedTuple):
    times: dict[tuple[int, int], Times]
    backend: str
    transport: str
    report: RankReport


def steps(job: RingJob) -> int:
    """The number of calls that the job makes, for a progress bar."""
    own = len(job.strategies) + len(subsets(job)) + len(job.percentages)
    cells = sum(own * len(job.lengths(module)) for module in job.modules)
    if job.baselines:  # context_parallel, and each rank alone
        cells += (1 + len(job.percentages)) * len(job.lengths("attention"))
    return cells * (_untimed(job) + job.repetitions)


def _untimed(job: RingJob) -> int:
    """Calls of each cell before the first repetition: one is verified, one sets the number of sustained calls."""
    return max(2 if job.condition == "sustained" else 1, job.warmup)


def run(job: RingJob, **watching: Any) -> JobResult:
    """Measure a job of the ring. All `block_lens` are known before a process is started.

    Args:
        job: What is measured.
        **watching: hang_timeout (seconds) and on_progress, as for `Job.launch`.

    Returns:
        Rows, the report of each rank, and notes.

    Raises:
        ValueError: For a job that cannot be measured.
        RunError: As `launch` does.
    """
    check_ranks(job.device_kind, job.throttle, job.percentages)
    cells, notes = cells_of(job)
    results: list[_RankResult] = job.launch(_measure, cells, **watching)
    rows = [
        _row(job, cell, repetition, [result.times[repetition, index] for result in results], results[0])
        for repetition in range(job.repetitions)
        for index, cell in enumerate(cells)
    ]
    return JobResult(rows, [result.report for result in results], notes)


def _measure(rank: Rank, job: RingJob, cells: tuple[RingCell, ...]) -> _RankResult:
    """One rank's part: every cell is warmed up, and its first result verified; then come the repetitions."""
    backend = choose(job.backend, rank.torch_device, job.shape.torch_dtype, job.shape.head_dim)
    transport = choose_transport(job.transport, dist.group.WORLD, rank.torch_device)
    busy = Busy(rank.device)
    with torch.no_grad():
        modules = {name: open_module(name, rank, job, backend, busy) for name in job.modules}
        warm = [0.0] * len(cells)
        for index, cell in enumerate(cells):
            _verify(modules[cell.module], cell)
            for _ in range(_untimed(job) - 1):
                warm[index] = _time(rank, modules[cell.module], cell, busy).latency_ms
        calls = _calls(rank, job, warm)
        times = {}
        for repetition in range(job.repetitions):
            with no_garbage_collection():
                for index in order(job, cells, repetition):
                    cell = cells[index]
                    times[repetition, index] = _time(
                        rank, modules[cell.module], cell, busy, job.condition, calls[index]
                    )
    return _RankResult(times, backend, transport, report(rank))


def order(job: RingJob, cells: tuple[RingCell, ...], repetition: int) -> list[int]:
    """The order in which one repetition measures the cells, the same on every rank.

    Cells that are compared, those of one module and length, are measured together: after a long call a GPU runs at a
    lower clock, which would slow a short call behind it. The order is drawn anew for each repetition, job and throttle
    setting, so that no cell always follows the same other one.

    Args:
        job: What is measured.
        cells: Its cells.
        repetition: Number of the repetition, from 0.

    Returns:
        Indices of `cells`.
    """
    together: dict[tuple[str, int], list[int]] = {}
    for index, cell in enumerate(cells):
        together.setdefault((cell.module, cell.partition.seq_len), []).append(index)
    draw, groups = Random(f"{job.seed} {job.number} {job.percentages} {repetition}"), list(together.values())
    draw.shuffle(groups)
    for group in groups:
        draw.shuffle(group)
    return [index for group in groups for index in group]


def _calls(rank: Rank, job: RingJob, warm: list[float]) -> list[int]:
    """The number of calls of each cell over which a time is averaged, the same on all ranks; `warm`: ms of one call."""
    if job.condition != "sustained":
        return [1] * len(warm)
    slowest = torch.tensor(warm, dtype=torch.float64, device=rank.torch_device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return [sustained_calls(ms) for ms in slowest.tolist()]


def _time(rank: Rank, module: Module, cell: RingCell, busy: Busy, condition: str = "rested", calls: int = 1) -> Times:
    with module.prepared(cell) as call:
        times = timed(call or (lambda: None), busy, rank.device, condition, calls)
    advance()
    return times


def _verify(module: Module, cell: RingCell) -> None:
    with module.prepared(cell) as call:
        if call is not None:
            module.verify(cell, call())
    advance()


def _row(job: RingJob, cell: RingCell, repetition: int, times: list[Times], result: _RankResult) -> Measurement:
    shape, partition = job.shape, cell.partition
    return Measurement(
        platform=job.platform,
        system=cell.system,
        module=cell.module,
        condition=job.condition,
        seq_len=partition.seq_len,
        batch=shape.batch,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
        causal=True,
        layout=partition.layout,
        allocator=cell.allocator,
        model_source=cell.model_source,
        clamped=cell.clamped,
        throttle=job.throttle,
        percentages=job.percentages,
        block_lens=partition.block_lens,
        block=_backend(cell, result),
        transport="p2p" if "p2p" in cell.variants else _TRANSPORTS.get(cell.system, result.transport),
        job=job.number,
        repetition=repetition,
        latency_ms=max(t.latency_ms for t in times),
        busy_ms=tuple(t.busy_ms for t in times),
        bytes_moved=_bytes_moved(job, cell),
    )


def _backend(cell: RingCell, result: _RankResult) -> str:
    if cell.system in BASELINES:
        return BASELINE_BACKEND
    return next((name for name in cell.variants if name in BACKENDS), result.backend)


def _bytes_moved(job: RingJob, cell: RingCell) -> int:
    if _TRANSPORTS.get(cell.system) == "none":
        return 0
    shape, partition = job.shape, cell.partition
    return sum(
        kv_bytes(
            partition,
            rank,
            batch=shape.batch,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            itemsize=shape.torch_dtype.itemsize,
            causal=cell.in_ring,  # an all-gather also sends keys that no query sees
        )
        for rank in range(partition.world_size)
    )
