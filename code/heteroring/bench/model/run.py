"""The run of a language-model job: all lengths and strategies, interleaved in one process group."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import torch

from heteroring.bench.model.job import ModelCell, ModelJob, cells_of
from heteroring.bench.model.layer_trace import Event
from heteroring.bench.model.prefill_decode import Check, ModelBench, Taken, Trial, middle
from heteroring.bench.timing import no_garbage_collection
from heteroring.launch.heartbeat import advance
from heteroring.launch.launch import Rank, check_ranks
from heteroring.results.model_rows import ModelRow, TraceRow
from heteroring.results.provenance import RankReport, report


class ModelResult(NamedTuple):
    """The rows of a job and its trace, the report of each rank, and notes.

    `generated` has the ids of every sequence, from rank 0, of each cell that decodes, by its label.
    """

    rows: list[ModelRow]
    trace: list[TraceRow]
    ranks: list[RankReport]
    notes: tuple[str, ...]
    generated: dict[str, list[list[int]]]


class _RankResult(NamedTuple):
    taken: dict[tuple[int, int], Taken]
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


def run(job: ModelJob, **watching: Any) -> ModelResult:
    """Measure `job`. All `block_lens` are known before a process is started.

    Takes hang_timeout and on_progress as `Job.launch` does. Raises ValueError for a job that cannot be measured, and
    whatever `launch` raises.
    """
    check_ranks(job.device_kind, job.throttle, job.percentages)
    cells, notes = cells_of(job)
    results: list[_RankResult] = job.launch(_measure, cells, **watching)
    rows, trace = [], []
    for index, cell in enumerate(cells):
        for repetition in range(job.repetitions):
            taken = [result.taken.get((index, repetition)) for result in results]
            limits = [result.limits_ms.get(index, 0.0) for result in results]
            rows += _rows(job, cell, repetition, taken, limits, results[0])
        trace += _trace_rows(job, cell, [result.events.get(index, []) for result in results])
    generated = {cells[index].label: ids.tolist() for index, ids in results[0].ids.items()}
    notes = (*notes, *_verdict(job, cells, results))
    return ModelResult(rows, trace, [result.report for result in results], notes, generated)


def _measure(rank: Rank, job: ModelJob, cells: tuple[ModelCell, ...]) -> _RankResult:
    """One rank's part: every cell is warmed up by one layer; then come the repetitions of the whole model.

    The order of cells is drawn anew for each repetition, the same on every rank. The first repetition's logits are
    compared with those of rank 0 alone, and its layer in the middle is traced.
    """
    bench = ModelBench(rank, job)
    taken: dict[tuple[int, int], Taken] = {}
    checks: dict[int, Check] = {}
    trials: dict[int, Trial] = {}
    spent = [[0.0] * rank.world_size for _ in cells]
    with torch.no_grad():
        bench.warm_up(cells)
        for repetition in range(job.repetitions):
            order = list(range(len(cells)))
            Random(f"{job.seed} {job.number} {job.percentages} {repetition}").shuffle(order)
            with no_garbage_collection():
                for index in order:
                    cell = cells[index]
                    worth = [not repetition or ms < 1e3 * job.cell_seconds for ms in spent[index]]
                    if all(worth) or (cell.system != "ring" and any(worth)):
                        trial = bench.take(cell, works=worth[rank.rank], trace=cell.traced and not repetition)
                        spent[index] = [sum(ms) for ms in zip(spent[index], bench.gather(trial), strict=True)]
                        if trial:
                            taken[index, repetition] = trial.taken
                        if not repetition:
                            trials[index] = trial
                    advance()
            if not repetition:
                checks = bench.verify(cells, trials)
    events = {index: trial.events for index, trial in trials.items()}
    ids = {index: trial.ids for index, trial in trials.items() if cells[index].decodes}
    limits = {
        index: bench.decode_limit_ms(_tokens(cell, rank.rank)) for index, cell in enumerate(cells) if cell.decodes
    }
    return _RankResult(taken, events, checks, ids, limits, bench.backend_name, bench.transport, report(rank))


def _tokens(cell: ModelCell, rank: int) -> int:
    """Tokens of the prompt whose KV the rank reads."""
    return cell.partition.block_lens[rank] if cell.system == "ring" else cell.partition.seq_len


def _rows(
    job: ModelJob,
    cell: ModelCell,
    repetition: int,
    taken: list[Taken | None],
    limits: list[float],
    result: _RankResult,
) -> Iterator[ModelRow]:
    """The rows of one repetition, from each rank's times and limit of decode: of the ring, or of each rank alone."""
    if cell.system != "ring":
        for rank, took in enumerate(taken):
            if took:
                lens = tuple(cell.partition.seq_len * (other == rank) for other in range(len(taken)))
                mine = [took if other == rank else None for other in range(len(taken))]
                yield from _phases(job, cell, repetition, lens, mine, limits[rank], result)
    elif taken[0]:
        yield from _phases(job, cell, repetition, cell.partition.block_lens, taken, max(limits), result)


def _phases(
    job: ModelJob,
    cell: ModelCell,
    repetition: int,
    block_lens: tuple[int, ...],
    taken: list[Taken | None],
    limit_ms: float,
    result: _RankResult,
) -> Iterator[ModelRow]:
    worked = [took for took in taken if took]
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
            latency_ms=max(getattr(took, f"{phase}_ms") for took in worked),
            peak_memory_bytes=tuple(getattr(took, f"{phase}_bytes") if took else 0 for took in taken),
            captured=phase == "decode" and all(took.captured for took in worked),
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
    first = sum(all(check.first for check in each) for each in checks)
    notes = [
        f"logits of the last token differ from those of rank 0 alone by {worst:.2g} of their size at most, and the "
        f"likeliest token is the same in {first} of {len(cells)} cells"
    ]
    for cell, each in zip(cells, checks, strict=True):
        if cell.decodes and cell.system == "ring":
            same = min(check.same for check in each)
            notes.append(f"{cell.label}: the first {same} of {job.new_tokens} ids are those of rank 0 alone")
    return tuple(notes)
