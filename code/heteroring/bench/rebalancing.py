"""Benchmark of a chunked prefill while a rank slows down: fixed, adaptive and oracle splits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from random import Random
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.distributed as dist
from rich.box import SIMPLE_HEAD
from rich.table import Table

from heteroring.allocators.even import even
from heteroring.bench.base_job import MULTIPLES, Job, JobResult
from heteroring.bench.model.spec import ModelSpec
from heteroring.bench.timing import no_garbage_collection
from heteroring.bench.verify import WrongResult
from heteroring.bench.wrap_module import wrap_computing
from heteroring.kernels.backend import resolve
from heteroring.launch.heartbeat import advance, beating
from heteroring.launch.launch import Rank, check_ranks
from heteroring.planning.rebalance import Rebalancer
from heteroring.results.model_metrics import chunk_totals
from heteroring.results.model_rows import CHUNK_SPLITS, ChunkRow
from heteroring.results.provenance import RankReport, report
from heteroring.results.strategy import EVEN
from heteroring.ring.partition import Partition
from heteroring.ring.validation import check_transport
from heteroring.throttle import Throttle, check_percentage, throttle_type

# Chunks over which constant speeds are measured first, for the splits that are given them.
CALIBRATING = 6
# With fewer on CPUs, even a split that adapts at once is below 0.9 of the oracle, since two chunks are split by old
# speeds.
CHUNKS = {"cpu": 32, "gpu": 16}
HANG_SECONDS = 120.0
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}


@dataclass(frozen=True, kw_only=True)
class RebalancingJob(Job):
    """A prompt of prompt_len tokens in chunks; the last rank runs at slow_percentage from chunk slow[0] to slow[1] - 1.

    Raises ValueError, naming value and rule, for anything that could not be measured as asked.
    """

    model: ModelSpec
    prompt_len: int
    chunk: int
    slow_percentage: int
    slow: tuple[int, int]
    transport: str = "auto"
    repetitions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_percentage(self.slow_percentage)
        check_transport(self.transport)
        if not throttle_type(self.throttle).can_change:
            raise ValueError(f"throttle {self.throttle!r} cannot change in a run: choose pacing, green or neighbour")
        if self.prompt_len < 1:
            raise ValueError(f"prompt_len is {self.prompt_len}: a prompt has 1 token or more")
        if self.chunk < len(self.percentages):
            raise ValueError(f"chunk is {self.chunk}: {len(self.percentages)} ranks need a token each")
        if not 0 < self.slow[0] < self.slow[1] < self.chunks:
            raise ValueError(
                f"the last rank is slow from chunk {self.slow[0]} to {self.slow[1]} of {self.chunks}: it must slow "
                "down behind the first and recover before the last"
            )
        if self.prompt_len > self.model.sizes.max_seq_len:
            raise ValueError(f"max_seq_len is {self.model.sizes.max_seq_len}, and the prompt is of {self.prompt_len}")

    @property
    def chunks(self) -> int:
        """How many chunks the prompt has."""
        return ceil(self.prompt_len / max(1, self.chunk))

    def percentages_of(self, chunk: int) -> tuple[int, ...]:
        """The percentage of each rank in a chunk."""
        last = self.slow_percentage if self.slow[0] <= chunk < self.slow[1] else self.percentages[-1]
        return (*self.percentages[:-1], last)


def demo_job(device_kind: str, platform: str, throttle: str = "", **changes: Any) -> RebalancingJob:
    """A prompt on two ranks, the second slow from a quarter of the chunks on to five eighths of them.

    On CPUs it is of a small LLaMA, on GPUs one of 65,536 tokens of the Llama-3-8B shape.

    Args:
        device_kind: "cpu" or "gpu".
        platform: What the rows call that.
        throttle: Name of the throttle; by default green on GPUs, pacing on CPUs.
        **changes: Other fields of the job.

    Returns:
        The job.

    Raises:
        ValueError: As RebalancingJob does.
    """
    gpu = device_kind == "gpu"
    fields = {"prompt_len": 65536 if gpu else 6144, "slow_percentage": 30, **changes}
    length = max(1, fields["prompt_len"])
    fields.setdefault("chunk", ceil(length / CHUNKS["gpu" if gpu else "cpu"]))
    chunks = ceil(length / max(1, fields["chunk"]))
    return RebalancingJob(
        device_kind=device_kind,
        platform=platform,
        throttle=throttle or ("green" if gpu else "pacing"),
        percentages=(100, 100),
        model=demo_model(device_kind, length),
        slow=(chunks // 4, chunks * 5 // 8),
        **fields,
    )


def demo_model(device_kind: str, seq_len: int) -> ModelSpec:
    """The model of a demo of `seq_len` tokens: a small LLaMA on CPUs, the Llama-3-8B shape on GPUs."""
    if device_kind == "gpu":
        return ModelSpec("llama/3-8b", "bfloat16", max_seq_len=seq_len)
    return ModelSpec("llama/micro", layers=2, emb_dim=256, heads=4, kv_heads=2, vocabulary=1024, max_seq_len=seq_len)


class MeasuredChunk(NamedTuple):
    """How a chunk was split, how long it took, and how long each rank was busy with it, in seconds."""

    block_lens: tuple[int, ...]
    latency: float
    busy: tuple[float, ...]


class _RankResult(NamedTuple):
    taken: dict[tuple[str, int], list[MeasuredChunk]]
    errors: dict[str, float]
    report: RankReport


class RecordingRebalancer(Rebalancer):
    """A Rebalancer that sets the throttle for each chunk, splits it as its kind says, and records its times.

    Args:
        split: Its kind, one of CHUNK_SPLITS.
        job: What is measured.
        throttle: This rank's throttle.
        known: Speeds of the ranks that were measured before, by their percentages; where those of the first chunk are
            missing, the percentages are taken for speeds.
    """

    def __init__(self, split: str, job: RebalancingJob, throttle: Throttle, known: dict[tuple[int, ...], Any]) -> None:
        speeds = known.get(job.percentages, job.percentages)
        super().__init__(speeds, multiple=MULTIPLES[job.device_kind])
        self._kind, self._job, self._throttle, self._known = split, job, throttle, known
        self._then = 0.0
        self.chunks: list[MeasuredChunk] = []

    def percentages(self) -> tuple[int, ...]:
        """The percentage of each rank in the next chunk."""
        return self._job.percentages_of(len(self.chunks))

    def partition(self, tokens: int) -> Partition:
        """The partition of the next chunk. It is also called for the whole prompt, before the first chunk."""
        self._throttle.set(self.percentages()[dist.get_rank()])
        if not self.chunks:
            self._then = time.perf_counter()
        if self._kind == EVEN:
            return Partition.contiguous(even(tokens, len(self.speeds)))
        if self._kind == "oracle":
            self.speeds = self._known[self.percentages()]
        return super().partition(tokens)

    def observe(self, partition: Partition, seconds: Sequence[float]) -> None:
        """Record the chunk's times, and learn from them if the split is `rebalanced`.

        Args:
            partition: Partition of the chunk.
            seconds: How long each rank was busy with its tokens, in seconds.
        """
        now = time.perf_counter()
        self.chunks.append(MeasuredChunk(partition.block_lens, now - self._then, tuple(seconds)))
        self._then = now
        if self._kind == "rebalanced":
            super().observe(partition, seconds)

    def finish(self) -> None:
        """Add the time since the last chunk to that chunk."""
        last = self.chunks[-1]
        self.chunks[-1] = last._replace(latency=last.latency + time.perf_counter() - self._then)


class _Steady(RecordingRebalancer):
    """An adaptive split at constant percentages, those of one chunk, which measures the ranks' speeds."""

    def __init__(self, job: RebalancingJob, throttle: Throttle, chunk: int) -> None:
        super().__init__("rebalanced", job, throttle, {})
        self._chunk = chunk

    def percentages(self) -> tuple[int, ...]:
        return self._job.percentages_of(self._chunk)


def steps(job: RebalancingJob) -> int:
    """The number of prefills that the job makes, for a progress bar."""
    return 4 + len(CHUNK_SPLITS) * job.repetitions


def run(job: RebalancingJob, **watching: Any) -> JobResult:
    """Measure a chunked prefill under each split.

    Args:
        job: What is measured.
        **watching: hang_timeout (seconds) and on_progress, as for `Job.launch`.

    Returns:
        A row per split, repetition and chunk, and the report of each rank.

    Raises:
        ValueError: For a job that cannot be measured.
        WrongResult: If a split's logits are not those of rank 0 alone.
        RunError: As `launch` does.
    """
    check_ranks(job.device_kind, job.throttle, job.percentages)
    results: list[_RankResult] = job.launch(_measure, **watching)
    for split, error in results[0].errors.items():
        if not error <= TOLERANCE[job.model.torch_dtype]:
            raise WrongResult(f"logits of split {split} differ from those of rank 0 alone by {error:.2g} of their size")
    rows = [
        ChunkRow(
            platform=job.platform,
            split=split,
            **job.model.columns,
            batch=1,
            prompt_len=job.prompt_len,
            chunk=number,
            seq_len=sum(chunk.block_lens),
            throttle=job.throttle,
            percentages=job.percentages_of(number),
            block_lens=chunk.block_lens,
            repetition=repetition,
            latency_ms=1e3 * chunk.latency,
            busy_ms=tuple(1e3 * each for each in chunk.busy),
        )
        for (split, repetition), chunks in sorted(results[0].taken.items(), key=lambda item: item[0][1])
        for number, chunk in enumerate(chunks)
    ]
    return JobResult(rows, [result.report for result in results])


def table(rows: Sequence[ChunkRow]) -> Table:
    """A line per split: tokens of the last rank in some chunks, time to first token, and the oracle's over that."""
    chunks = pd.DataFrame(map(asdict, rows))
    totals = chunk_totals(chunks)
    slow = chunks[chunks["percentages"] != chunks["percentages"].iloc[0]]
    places = {"first": 0, "slow": slow["chunk"].max(), "last": chunks["chunk"].max()}
    title = (
        f"{rows[0].prompt_len:,} tokens in chunks of {chunks['seq_len'].max()}, the last rank at "
        f"{min(slow['percentages'].iloc[0])} % in chunks {slow['chunk'].min()} to {slow['chunk'].max()}"
    )
    caption = (
        "its tokens in the first chunk, the last slow one and the last; time to first token, the median over "
        "repetitions; shares that were used; the time of a split that knows each chunk's speeds over it"
    )
    shown = Table(title=title, caption=caption, box=SIMPLE_HEAD)
    shown.add_column("split", no_wrap=True)
    for name in (*places, "ms", "shares", "of oracle"):
        shown.add_column(name, justify="right", no_wrap=True)
    for total in totals.itertuples():
        lens = chunks[(chunks["split"] == total.Index) & (chunks["repetition"] == 0)].set_index("chunk")["block_lens"]
        tokens = (str(lens[place][-1]) for place in places.values())
        shown.add_row(total.Index, *tokens, f"{total.latency_ms:.0f}", str(total.splits), f"{total.of_oracle:.2f}")
    return shown


@torch.no_grad()
def _measure(rank: Rank, job: RebalancingJob) -> _RankResult:
    """One rank's part: constant speeds, rank 0 alone, and then every split, in an order drawn for each repetition."""
    from heteroring.fms import ring_prefill
    from heteroring.fms.rebalance import counted_layers

    device, shape = rank.torch_device, job.model.shape(1)
    model = job.model.build(device, job.seed)
    generator = torch.Generator().manual_seed(job.seed)
    ids = torch.randint(job.model.sizes.vocabulary, (1, job.prompt_len), generator=generator)

    def wrap(function: Any) -> Any:
        slowed = rank.throttle.wrap(function)
        return beating(slowed) if device.type == "cpu" else slowed

    wrap_computing(model, wrap)
    attend = resolve(job.backend, device, shape.torch_dtype, shape.head_dim).wrapped(rank.throttle.wrap)
    layers = job.model.sizes.layers
    scale = layers / len(counted_layers(layers, device))

    def prefill(split: RecordingRebalancer, tokens: int = job.prompt_len) -> torch.Tensor:
        rank.device.meet()
        with no_garbage_collection():
            logits, _ = ring_prefill(
                model, ids[:, :tokens], chunk=job.chunk, rebalance=split, block=attend, transport=job.transport
            )
            rank.device.synchronize()
            split.finish()
        advance()
        return logits

    known = {}
    for chunk in (0, 0, job.slow[0]):  # the first compiles kernels, and is measured again
        steady = _Steady(job, rank.throttle, chunk)
        prefill(steady, min(job.prompt_len, CALIBRATING * job.chunk))
        known[steady.percentages()] = steady.estimates
    rank.throttle.set(job.percentages[rank.rank])
    groups = [dist.new_group([each]) for each in range(rank.world_size)]  # every rank takes part in creating every one
    alone = None
    if rank.rank == 0:
        whole = Partition.contiguous((job.prompt_len,))
        alone = ring_prefill(model, ids, whole, group=groups[0], chunk=job.chunk, block=attend).logits
    advance()
    taken: dict[tuple[str, int], list[MeasuredChunk]] = {}
    errors: dict[str, float] = {}  # of logits, relative to their size
    for repetition in range(job.repetitions):
        order = list(CHUNK_SPLITS)
        Random(f"{job.seed} {repetition}").shuffle(order)
        for name in order:
            split = RecordingRebalancer(name, job, rank.throttle, known)
            logits = prefill(split)
            if alone is not None:
                errors[name] = float((logits - alone).abs().max() / alone.abs().max())
            taken[name, repetition] = [
                chunk._replace(busy=tuple(scale * each for each in chunk.busy)) for chunk in split.chunks
            ]
    return _RankResult(taken, errors, report(rank))
