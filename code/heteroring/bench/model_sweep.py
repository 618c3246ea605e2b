"""A whole model over the ring, measured: all lengths and strategies of a job, interleaved in one process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from heteroring.allocate.even import even
from heteroring.bench.heartbeat import advance, beat
from heteroring.bench.launch import HANG_TIMEOUT, Rank, check_ranks, launch
from heteroring.bench.layer_trace import Event, LayerTrace
from heteroring.bench.model_job import ModelCell, ModelJob, plan
from heteroring.bench.model_records import ModelRow, TraceRow
from heteroring.bench.provenance import RankReport, report
from heteroring.bench.throttled_module import wrap_computing
from heteroring.bench.timing import no_garbage_collection
from heteroring.bench.verify import WrongResult
from heteroring.kernels.block import Block, choose, resolve
from heteroring.ring.partition import Partition
from heteroring.ring.transport import choose_transport

# Error of the logits relative to their own size: rounding adds up from layer to layer, and a layer that lost a shard
# is off by as much as its own size.
LOGITS_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}
WARM_TOKENS = 4
SHORT_PROMPT = 64


class ModelSweep(NamedTuple):
    """The rows of a job and its trace, what each rank ran on, and what there is to say about it."""

    rows: list[ModelRow]
    trace: list[TraceRow]
    ranks: list[RankReport]
    notes: tuple[str, ...]


class Taken(NamedTuple):
    """What one repetition of a cell took on one rank: milliseconds, and bytes. decode_ms is per token, 0 for none."""

    prefill_ms: float
    decode_ms: float
    prefill_bytes: int
    decode_bytes: int


class _Trial(NamedTuple):
    """A repetition as its rank has it: what it took, logits [B, V], and what the traced layer did."""

    taken: Taken
    logits: torch.Tensor
    events: list[Event]


class _RankResult(NamedTuple):
    taken: dict[tuple[int, int], Taken]
    events: dict[int, list[Event]]
    errors: dict[int, tuple[float, bool]]
    block: str
    transport: str
    report: RankReport


def steps(job: ModelJob) -> int:
    """Calls that the job makes: what a progress bar counts to."""
    return len(job.seq_lens) * (len(job.strategies) + 1) * (1 + job.repetitions)


def run(
    job: ModelJob, *, hang_timeout: float = HANG_TIMEOUT, on_progress: Callable[[int], None] | None = None
) -> ModelSweep:
    """Measure `job`. All block lengths are known before a process is started.

    Raises ValueError for what cannot be measured, and what `launch` raises.
    """
    check_ranks(job.platform, job.throttle, job.percentages)
    cells, notes = plan(job)
    results: list[_RankResult] = launch(
        _measure,
        job,
        cells,
        platform=job.platform,
        throttle=job.throttle,
        percentages=job.percentages,
        hang_timeout=hang_timeout,
        on_progress=on_progress,
    )
    rows, trace = [], []
    for index, cell in enumerate(cells):
        for repetition in range(job.repetitions):
            taken = [result.taken.get((index, repetition)) for result in results]
            rows += _rows(job, cell, repetition, taken, results[0])
        trace += _trace_rows(job, cell, [result.events.get(index, []) for result in results])
    return ModelSweep(rows, trace, [result.report for result in results], (*notes, *_verdict(cells, results)))


def _measure(rank: Rank, job: ModelJob, cells: tuple[ModelCell, ...]) -> _RankResult:
    """One rank's part: every cell is warmed up by one layer; then come the repetitions of the whole model.

    The order of cells is drawn anew for each repetition, the same on every rank. The first repetition's logits are
    compared with those of rank 0 alone, and its layer in the middle is traced.
    """
    bench = _Bench(rank, job)
    taken: dict[tuple[int, int], Taken] = {}
    events: dict[int, list[Event]] = {}
    logits: dict[int, torch.Tensor] = {}
    errors: dict[int, tuple[float, bool]] = {}
    spent = [[0.0] * rank.world_size for _ in cells]
    with torch.no_grad():
        bench.warm_up(cells)
        for repetition in range(job.repetitions):
            order = list(range(len(cells)))
            Random(f"{job.seed} {repetition}").shuffle(order)
            for index in order:
                cell = cells[index]
                worth = [not repetition or ms < 1e3 * job.cell_seconds for ms in spent[index]]
                if all(worth) or (cell.system == "alone" and any(worth)):
                    with no_garbage_collection():
                        trial = bench.take(cell, works=worth[rank.rank], trace=cell.traced and not repetition)
                    spent[index] = [sum(ms) for ms in zip(spent[index], bench.gather(trial), strict=True)]
                    if trial:
                        taken[index, repetition] = trial.taken
                    if not repetition:
                        events[index], logits[index] = trial.events, trial.logits
                advance()
            if not repetition:
                errors = bench.verify(cells, logits)
                logits.clear()
    return _RankResult(taken, events, errors, bench.block_name, bench.transport, report(rank))


class _Bench:
    """A model on one rank, ready to be timed."""

    def __init__(self, rank: Rank, job: ModelJob) -> None:
        self.rank, self.job = rank, job
        shape, device = job.model.shape(job.batch), rank.torch_device
        self.block_name = choose(job.block, device, shape.torch_dtype, shape.head_dim)
        self.transport = choose_transport(job.transport, dist.group.WORLD, device)
        self.model = job.model.build(device, job.seed)
        beat()
        wrap_computing(self.model, rank.throttle.wrap)
        plain = resolve(self.block_name, device, shape.torch_dtype, shape.head_dim)
        self._compute: Block = rank.throttle.wrap(plain)
        # By its name, a block brings along what it has for one query against many keys; slowed, it does not.
        self._block = job.block if self._compute is plain else self._compute
        # Every rank takes part in making every group.
        groups = [dist.new_group([each]) for each in range(rank.world_size)]
        self._alone = groups[rank.rank]
        generator = torch.Generator().manual_seed(job.seed)
        prompt = (job.batch, max(job.seq_lens))
        self._prompt = torch.randint(job.model.sizes.vocabulary, prompt, generator=generator)

    def warm_up(self, cells: tuple[ModelCell, ...]) -> None:
        """Run the first layer of every cell, and a short prompt through all of them, tokens decoded included."""
        for cell in cells:
            with first_layer(self.model):
                self._prefill(cell, self._block)
            self.rank.device.synchronize()
            advance()
        # A short prompt through the whole model leaves nothing that the host would first do in a timed one.
        short = max(self.rank.world_size, min(SHORT_PROMPT, *self.job.seq_lens))
        for cell in cells:
            if cell.partition.seq_len == max(self.job.seq_lens):
                prefill = self._prefill(_shortened(cell, short), self._block)
                if cell.decodes:
                    self._decode(prefill, min(WARM_TOKENS, self.job.new_tokens))
                self.rank.device.synchronize()
                beat()

    def take(self, cell: ModelCell, works: bool, trace: bool) -> _Trial | None:
        """Time one prefill of `cell`, and the decode behind it, if there is one; None on a rank that does not work."""
        device = self.rank.device
        tracer = LayerTrace(device, self._compute)
        prefill = None
        with tracer.of(_middle_layer(self.model)) if trace else nullcontext():
            start = self._start()
            if works:
                prefill = self._prefill(cell, tracer if trace else self._block)
            stop = device.mark()
            device.synchronize()
        prefill_ms, prefill_bytes = device.elapsed_ms(start, stop), self._peak_bytes(cell)
        events = tracer.events(start, cell.partition, self.rank.rank) if trace else []
        decode_ms, decode_bytes = 0.0, 0
        if cell.decodes:
            start = self._start()
            if prefill:
                self._decode(prefill, self.job.new_tokens)
            stop = device.mark()
            device.synchronize()
            decode_ms, decode_bytes = device.elapsed_ms(start, stop) / self.job.new_tokens, self._peak_bytes(cell)
        if not prefill:
            return None
        return _Trial(Taken(prefill_ms, decode_ms, prefill_bytes, decode_bytes), prefill.logits.float(), events)

    def _start(self) -> Any:
        """The mark from which all ranks begin."""
        self.rank.device.synchronize()
        if self.rank.torch_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        beat()
        self.rank.device.align()
        return self.rank.device.mark()

    def gather(self, trial: _Trial | None) -> list[float]:
        """Milliseconds that each rank's prefill took: 0 where a rank did not work."""
        mine = torch.tensor([trial.taken.prefill_ms if trial else 0.0], device=self.rank.torch_device)
        times = [torch.empty_like(mine) for _ in range(self.rank.world_size)]
        dist.all_gather(times, mine)
        return [time.item() for time in times]

    def verify(self, cells: tuple[ModelCell, ...], logits: dict[int, torch.Tensor]) -> dict[int, tuple[float, bool]]:
        """(error relative to rank 0 alone, whether the same token comes first) of each cell's logits on this rank.

        Raises WrongResult, naming the cell, if an error exceeds LOGITS_TOLERANCE.
        """
        errors = {}
        tolerance = LOGITS_TOLERANCE[self.job.model.torch_dtype]
        exact: dict[int, torch.Tensor] = {}
        for index, cell in enumerate(cells):
            if cell.system == "alone":
                exact[cell.partition.seq_len] = logits[index].clone()
                dist.broadcast(exact[cell.partition.seq_len], src=0)
        for index, cell in enumerate(cells):
            expected = exact[cell.partition.seq_len]
            error = ((logits[index] - expected).norm() / expected.norm()).item()
            if not error <= tolerance:
                raise WrongResult(
                    f"{cell.label}, rank {self.rank.rank}: the logits are off by {error:.2g} of their size, more than "
                    f"{tolerance:g}"
                )
            errors[index] = error, bool((logits[index].argmax(-1) == expected.argmax(-1)).all())
        return errors

    def _prefill(self, cell: ModelCell, block: str | Block) -> Any:
        from heteroring.fms import ring_prefill

        return ring_prefill(
            self.model,
            self._prompt[:, : cell.partition.seq_len],
            cell.partition,
            group=self._alone if cell.system == "alone" else None,
            capacity=self.job.new_tokens if cell.decodes else 0,
            block=block,
            transport=self.job.transport,
        )

    def _decode(self, prefill: Any, tokens: int) -> None:
        """Generate `tokens` more, each the likeliest."""
        from heteroring.fms import ring_decode_step

        prefill.cache.block = self._block
        logits = prefill.logits
        for _ in range(tokens):
            beat()
            logits = ring_decode_step(self.model, logits.argmax(-1), prefill.cache)

    def _peak_bytes(self, cell: ModelCell) -> int:
        if self.rank.torch_device.type != "cuda":
            return 0
        mailbox = 0
        if cell.system == "ring" and self.transport == "copy-engine":
            from heteroring.ring.mailbox import mailbox_bytes

            mailbox = mailbox_bytes(dist.group.WORLD, self.rank.torch_device)
        return torch.cuda.max_memory_allocated() + mailbox


@contextmanager
def first_layer(model: nn.Module) -> Iterator[None]:
    """`model` with no layer but its first: every kind and size of work that it has, for a small part of its time."""
    layers = model.base_model.layers
    model.base_model.layers = layers[:1]
    try:
        yield
    finally:
        model.base_model.layers = layers


def _middle_layer(model: nn.Module) -> nn.Module:
    return model.base_model.layers[_middle(len(model.base_model.layers))]


def _middle(layers: int) -> int:
    return layers // 2


def _shortened(cell: ModelCell, seq_len: int) -> ModelCell:
    """The same with a prompt of `seq_len` tokens, evenly shared."""
    lens = even(seq_len, cell.partition.world_size)
    return replace(cell, partition=Partition(cell.partition.layout, lens))


def _rows(
    job: ModelJob, cell: ModelCell, repetition: int, taken: list[Taken | None], result: _RankResult
) -> Iterator[ModelRow]:
    """The rows of one repetition, given what it took on each rank: of the ring, or of each rank alone."""
    if cell.system == "alone":
        for rank, took in enumerate(taken):
            if took:
                lens = tuple(cell.partition.seq_len * (other == rank) for other in range(len(taken)))
                mine = [took if other == rank else None for other in range(len(taken))]
                yield from _phases(job, cell, repetition, lens, mine, result)
    elif taken[0]:
        yield from _phases(job, cell, repetition, cell.partition.block_lens, taken, result)


def _phases(
    job: ModelJob,
    cell: ModelCell,
    repetition: int,
    block_lens: tuple[int, ...],
    taken: list[Taken | None],
    result: _RankResult,
) -> Iterator[ModelRow]:
    sizes = job.model.sizes
    worked = [took for took in taken if took]
    for phase in ("prefill", "decode") if cell.decodes else ("prefill",):
        yield ModelRow(
            platform=job.label,
            phase=phase,
            system=cell.system,
            architecture=job.model.architecture,
            variant=job.model.variant,
            layers=sizes.layers,
            emb_dim=sizes.emb_dim,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            dtype=job.model.dtype,
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
            block=result.block,
            transport="none" if cell.system == "alone" else result.transport,
            repetition=repetition,
            latency_ms=max(getattr(took, f"{phase}_ms") for took in worked),
            peak_memory_bytes=tuple(getattr(took, f"{phase}_bytes") if took else 0 for took in taken),
        )


def _trace_rows(job: ModelJob, cell: ModelCell, events: list[list[Event]]) -> Iterator[TraceRow]:
    for rank, happened in enumerate(events):
        for event in happened:
            yield TraceRow(
                platform=job.label,
                strategy=cell.strategy,
                seq_len=cell.partition.seq_len,
                percentages=job.percentages,
                layer=_middle(job.model.sizes.layers),
                rank=rank,
                **event._asdict(),
            )


def _verdict(cells: tuple[ModelCell, ...], results: list[_RankResult]) -> tuple[str, ...]:
    """How far the cells' logits were from those of rank 0 alone, in words."""
    compared = [[result.errors[index] for result in results] for index in range(len(cells))]
    worst = max(error for each in compared for error, _ in each)
    same = sum(all(first for _, first in each) for each in compared)
    return (
        f"logits of the last token differ from those of rank 0 alone by {worst:.2g} of their size at most, and the "
        f"likeliest token is the same in {same} of {len(cells)} cells",
    )
