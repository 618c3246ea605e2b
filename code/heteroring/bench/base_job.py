"""Base classes of the jobs of all measurements: where ranks run, how calls are repeated, and how prompts are split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from heteroring.allocators import allocation
from heteroring.allocators.apportion import apportion
from heteroring.kernels.backend import check_backend
from heteroring.launch.device import DEVICE_TYPES
from heteroring.launch.launch import HANG_TIMEOUT, launch
from heteroring.results.model_rows import TraceRow
from heteroring.results.provenance import RankReport
from heteroring.results.strategy import CALL_VARIANTS, Strategy, check_strategies, name_of, variants_of
from heteroring.ring.partition import Partition
from heteroring.ring.validation import check_transport
from heteroring.words import check_distinct

# A head and a tail of whole tiles of queries, 128 on every GPU that was tuned for.
MULTIPLES = {"cpu": 1, "gpu": 256}


class JobResult(NamedTuple):
    """The rows of a job, the report of each rank, and notes on irregularities.

    Of a job of a whole model, `trace` has the rows of its trace, and `generated` the ids of every sequence, from rank
    0, of each cell that decodes, by its label.
    """

    rows: list[Any]
    ranks: list[RankReport]
    notes: tuple[str, ...] = ()
    trace: Sequence[TraceRow] = ()
    generated: Mapping[str, list[list[int]]] = {}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of one launch of ranks under one throttle setting.

    device_kind: what it runs on; platform: what its rows call that. percentages: one per rank, as `throttle` sets them.
    backend: that of attention. seed: of inputs, and of the order in which cells are measured.

    Raises ValueError, naming value and rule, for anything that could not be measured as asked.
    """

    device_kind: str = field(metadata={"recorded_as": "platform"})
    platform: str = field(metadata={"recorded_as": "label"})
    throttle: str
    percentages: tuple[int, ...]
    backend: str = field(default="auto", metadata={"recorded_as": "block"})
    repetitions: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repetitions < 1:
            raise ValueError(f"repetitions is {self.repetitions}: it must be 1 or more")
        if not 0 <= self.seed < 2**63:  # the range of PyTorch's generators
            raise ValueError(f"seed is {self.seed}: it must lie in 0..{2**63 - 1}")
        check_backend(self.backend, DEVICE_TYPES.get(self.device_kind))

    def launch(
        self,
        task: Callable[..., Any],
        *args: Any,
        hang_timeout: float = HANG_TIMEOUT,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """Run a task on the job's ranks, as `heteroring.launch.launch.launch` does.

        Args:
            task: A module-level function, called as `task(rank, job, *args)`.
            *args: Further arguments of the task.
            hang_timeout: Seconds without a heartbeat after which a rank hangs.
            on_progress: Called with the number of steps that all ranks have advanced; None for nothing.

        Returns:
            What the task returned on every rank, in rank order.
        """
        return launch(
            task,
            self,
            *args,
            device_kind=self.device_kind,
            throttle=self.throttle,
            percentages=self.percentages,
            hang_timeout=hang_timeout,
            on_progress=on_progress,
        )


@dataclass(frozen=True, kw_only=True)
class SplitJob(Job):
    """A job that measures prompts of seq_lens tokens, each split over the ranks by each of the strategies.

    fitted_models: folder of those that lut, formula and balanced need. multiple: tokens that balanced gives out at a
    time, 0 for the device kind's default. number: which of several independently started jobs of the same kind this is,
    from 1.
    """

    seq_lens: tuple[int, ...]
    strategies: tuple[str, ...]
    fitted_models: Path | None = field(default=None, metadata={"recorded_as": "models"})
    transport: str = "auto"
    multiple: int = 0
    number: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lengths("seq_lens", self.seq_lens)
        check_transport(self.transport)
        object.__setattr__(self, "strategies", check_strategies(self.strategies))
        if self.multiple < 0:
            raise ValueError(f"multiple is {self.multiple}: it must be 1 or more, or 0 for what suits the device kind")
        if self.number < 1:
            raise ValueError(f"job is {self.number}: it must be 1 or more")

    @property
    def call_variants(self) -> tuple[str, ...]:
        """The variants among CALL_VARIANTS that some strategy has."""
        asked = {variant for strategy in map(Strategy, self.strategies) for variant in strategy.variants}
        return tuple(variant for variant in CALL_VARIANTS if variant in asked)


@dataclass(frozen=True)
class Cell:
    """One thing that a SplitJob measures: a prompt under one split, by all ranks or by each rank alone."""

    system: str
    allocator: str
    partition: Partition
    model_source: str = ""
    clamped: bool = False

    @classmethod
    def of_ring(
        cls, job: SplitJob, strategy: Strategy, seq_len: int, cost: str, **more: Any
    ) -> tuple[Self, tuple[str, ...]]:
        """The cell of a strategy at a length, and its allocator's notes.

        Args:
            job: What is measured.
            strategy: The strategy.
            seq_len: Tokens of the prompt.
            cost: The profile that the cost model of balanced is fitted to.
            **more: Fields of a subclass.

        Returns:
            (cell, notes).

        Raises:
            ValueError: If the allocator fails, for instance for lack of a fitted model.
        """
        multiple = 1 if "untiled" in strategy.variants else job.multiple or MULTIPLES[job.device_kind]
        quarter = "quarter" in strategy.variants
        given = allocation(
            strategy.allocator,
            max(1, seq_len // 4) if quarter else seq_len,
            percentages=job.percentages,
            profile=_fitted_model(job.fitted_models, strategy, cost),
            layout=strategy.layout,
            multiple=multiple,
        )
        lens = apportion(given.speeds, seq_len) if quarter else shifted(given.block_lens, strategy.shift, multiple)
        partition = Partition(strategy.layout, lens)
        cell = cls("ring", strategy.with_variants, partition, given.model_source, given.clamped, **more)
        return cell, tuple(f"{cell.label}: {note}" for note in given.notes)

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants of the strategy, such as "untiled"."""
        return variants_of(self.allocator)

    @property
    def strategy(self) -> str:
        """The name of the strategy in rows and legends."""
        return name_of(self.partition.layout, self.allocator, self.model_source)

    @property
    def label(self) -> str:
        """What the cell is, for messages."""
        return f"{self.strategy} at {self.partition.seq_len}"


def shifted(block_lens: tuple[int, ...], percent: int, multiple: int) -> tuple[int, ...]:
    """Move tokens from the longest shard to the shortest.

    Args:
        block_lens: Tokens per rank.
        percent: By how much the shortest shard grows; 0 leaves all as they are.
        multiple: Tokens that are moved at a time, at least once, as far as the two shards allow.

    Returns:
        Tokens per rank.
    """
    if not percent:
        return block_lens
    lens = list(block_lens)
    short, long = lens.index(min(lens)), len(lens) - 1 - lens[::-1].index(max(lens))
    units = max(1, round(abs(percent) / 100 * lens[short] / multiple))
    moved = min(units * multiple, lens[long]) if percent > 0 else -min(units * multiple, lens[short])
    lens[short] += moved
    lens[long] -= moved
    return tuple(lens)


def _fitted_model(folder: Path | None, strategy: Strategy, cost: str) -> Path | None:
    """The file in `folder` of the model that `strategy` needs, or None. Raises ValueError if it is missing."""
    name = strategy.fitted_model(cost)
    if name is None:
        return None
    if folder is None:
        raise ValueError(f"allocator {strategy.allocator!r} needs a model: name the folder that holds {name}.json")
    path = folder / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"allocator {strategy.allocator!r} needs the model {path}, which does not exist")
    return path


def check_lengths(name: str, lengths: Sequence[int]) -> None:
    """Raise ValueError unless there are lengths, each 1 or more and none twice."""
    check_distinct(name, lengths)
    for length in lengths:
        if length < 1:
            raise ValueError(f"{name} holds {length}: a length is 1 or more")


def check_warmup(warmup: int) -> None:
    """Raise ValueError unless `warmup` is a number of calls."""
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}: it must be 0 or more")
