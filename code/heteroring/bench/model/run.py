"""The run of a language-model job: all lengths and strategies, interleaved in one process group."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import torch

from heteroring.bench.base_job import JobResult
from heteroring.bench.model.job import ModelCell, ModelJob, cells_of
from heteroring.bench.model.layer_trace import Event
from heteroring.bench.model.prefill_decode import Check, ModelBench, Repetition, Usage, middle
from heteroring.bench.timing import no_garbage_collection
from heteroring.launch.heartbeat import advance
from heteroring.launch.launch import Rank, check_ranks
from heteroring.results.model_rows import ModelRow, TraceRow
from heteroring.results.provenance import RankReport, report


class _RankResult(NamedTuple):
    usages: dict[tuple[int, int], Usage]
    events: dict[int, list[Event]]
    checks: dict[int, Check]
    ids: dict[int, torch.Tensor]
    limits_ms: dict[int, float]
    backend: str
    transport: str
    report: RankReport


def steps(job: ModelJob) -> int:
    """The number of calls that the job makes, for a progress bar."""
    return len(job.seq_lens) * (len(job.strategies) + 1 + job.baselines) * (1 + job.repetitions)


def run(job: ModelJob, **watching: Any) -> JobResult:
    """Measure a whole language model. All `block_lens` are known before a process is started.

    Args:
        job: What is measured.
        **watching: hang_timeout (seconds) and on_progress, as for `Job.launch`.

    Returns:
        Rows, the trace, the report of each rank, notes, and the ids that were generated.

    Raises:
        ValueError: For a job that cannot be measured.
        RunError: As `launch` does.
    """
    check_ranks(job.device_kind, job.throttle, job.percentages)
    cells, notes = cells_of(job)
    results: list[_RankResult] = job.launch(_measure, cells, **watching)
    rows, trace = [], []
    for index, cell in enumerate(cells):
        for repetition in range(job.repetitions):
            usages = [result.usages.get((index, repetition)) for result in results]
            limits = [result.limits_ms.get(index, 0.0) for result in results]
            rows += _rows(job, cell, repetition, usages, limits, results[0])
        trace += _trace_rows(job, cell, [result.events.get(index, []) for result in results])
    generated = {cells[index].label: ids.tolist() for index, ids in results[0].ids.items()}
    notes = (*notes, *_verdict(job, cells, results))
    return JobResult(rows, [result.report for result in results], notes, trace, generated)


def _measure(rank: Rank, job: ModelJob, cells: tuple[ModelCell, ...]) -> _RankResult:
    """One rank's part: every cell is warmed up by one layer; then come the repetitions of the whole model.

    The order of cells is drawn anew for each repetition, the same on every rank. The first repetition's logits are
    compared with those of rank 0 alone, and its layer in the middle is traced.
    """
    bench = ModelBench(rank, job)
    usages: dict[tuple[int, int], Usage] = {}
    checks: dict[int, Check] = {}
    firsts: dict[int, Repetition] = {}
    spent = [[0.0] * rank.world_size for _ in cells]
    with torch.no_grad():
        bench.warm_up(cells)
        for repetition in range(job.repetitions):
            order = list(range(len(cells)))
            Random(f"{job.seed} {job.number} {job.percentages} {repetition}").shuffle(order)
            with no_garbage_collection():
                for index in order:
                    cell = cells[index]
                    works = [not repetition or ms < 1e3 * job.cell_seconds for ms in spent[index]]
                    if all(works) or (cell.system != "ring" and any(works)):
                        done = bench.measure(cell, works=works[rank.rank], trace=cell.traced and not repetition)
                        spent[index] = [sum(ms) for ms in zip(spent[index], bench.gather(done), strict=True)]
                        if done:
                            usages[index, repetition] = done.usage
                        if not repetition:
                            firsts[index] = done
                    advance()
            if not repetition:
                checks = bench.verify(cells, firsts)
    events = {index: done.events for index, done in firsts.items()}
    ids = {index: done.ids for index, done in firsts.items() if cells[index].decodes}
    limits = {
        index: bench.decode_limit_ms(_tokens(cell, rank.rank)) for index, cell in enumerate(cells) if cell.decodes
    }
    return _RankResult(usages, events, checks, ids, limits, bench.backend_name, bench.transport, report(rank))


def _tokens(cell: ModelCell, rank: int) -> int:
    """Tokens of the prompt whose KV the rank reads."""
    return cell.partition.block_lens[rank] if cell.system == "ring" else cell.partition.seq_len


def _rows(
    job: ModelJob,
    cell: ModelCell,
    repetition: int,
    usages: list[Usage | None],
    limits: list[float],
    result: _RankResult,
) -> Iterator[ModelRow]:
    """The rows of one repetition, from each rank's times and limit of decode: of the ring, or of each rank alone."""
    if cell.system != "ring":
        for rank, usage in enumerate(usages):
            if usage:
                lens = tuple(cell.partition.seq_len * (other == rank) for other in range(len(usages)))
                mine = [usage if other == rank else None for other in range(len(usages))]
                yield from _phases(job, cell, repetition, lens, mine, limits[rank], result)
    elif usages[0]:
        yield from _phases(job, cell, repetition, cell.partition.block_lens, usages, max(limits), result)


def _phases(
    job: ModelJob,
    cell: ModelCell,
    repetition: int,
    block_lens: tuple[int, ...],
    usages: list[Usage | None],
    limit_ms: float,
    result: _RankResult,
) -> Iterator[ModelRow]:
    worked = [usage for usage in usages if usage]
    for phase in [*([] if job.decode_only else ["prefill"]), *(["decode"] if cell.decodes else [])]:
        yield ModelRow(
            platform=job.platform,
            phase=phase,
            system=cell.system,
            **job.model.columns,
            batch=job.batch,
            seq_len=cell.partition.seq_len,
            new_tokens=job.new_tokens if phase == "decode" else 0,
            layout=cell.partition.layout,
            allocator=cell.allocator,
            model_source=cell.model_source,
            clamped=cell.clamped,
            throttle=job.throttle,
            percentages=job.percentages,
            block_lens=block_lens,
            block="fms" if cell.system == "fms" else result.backend,
            transport=result.transport if cell.system == "ring" else "none",
            job=job.number,
            repetition=repetition,
            latency_ms=max(getattr(usage, f"{phase}_ms") for usage in worked),
            peak_memory_bytes=tuple(getattr(usage, f"{phase}_bytes") if usage else 0 for usage in usages),
            captured=phase == "decode" and all(usage.captured for usage in worked),
            compiled=job.compiled,
            limit_ms=limit_ms if phase == "decode" else 0.0,
        )


def _trace_rows(job: ModelJob, cell: ModelCell, events: list[list[Event]]) -> Iterator[TraceRow]:
    for rank, happened in enumerate(events):
        for event in happened:
            yield TraceRow(
                platform=job.platform,
                strategy=cell.strategy,
                seq_len=cell.partition.seq_len,
                percentages=job.percentages,
                job=job.number,
                layer=middle(job.model.sizes.layers),
                rank=rank,
                **event._asdict(),
            )


def _verdict(job: ModelJob, cells: tuple[ModelCell, ...], results: list[_RankResult]) -> tuple[str, ...]:
    """A note on how the cells' results compare with those of rank 0 alone."""
    checks = [[result.checks[index] for result in results] for index in range(len(cells))]
    worst = max(check.error for each in checks for check in each)
    same_token = sum(all(check.same_token for check in each) for each in checks)
    notes = [
        f"logits of the last token differ from those of rank 0 alone by {worst:.2g} of their size at most, and the "
        f"likeliest token is the same in {same_token} of {len(cells)} cells"
    ]
    for cell, each in zip(cells, checks, strict=True):
        if cell.decodes and cell.system == "ring":
            same_ids = min(check.same_ids for check in each)
            notes.append(f"{cell.label}: the first {same_ids} of {job.new_tokens} ids are those of rank 0 alone")
    return tuple(notes)
