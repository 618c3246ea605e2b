"""The job of `heteroring model`: a language model, a throttle setting, and the cells interleaved under it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from heteroring.allocators import allocation
from heteroring.bench.model.spec import ModelSpec
from heteroring.bench.ring.job import MULTIPLES, fitted_model
from heteroring.bench.shape import check_lengths, check_repetitions
from heteroring.kernels.backend import check_backend
from heteroring.launch.device import DEVICE_TYPES
from heteroring.results.strategy import check_strategies, name_of
from heteroring.ring.partition import Partition
from heteroring.ring.transport.transport import check_transport

# The profile that the cost of a model's blocks is fitted to.
COST = "block"
TRACED = ("contiguous/even", "zigzag/balanced")
DECODED = "zigzag/balanced"


@dataclass(frozen=True)
class ModelJob:
    """What `heteroring model` measures under one throttle setting.

    platform: what it runs on; label: what its rows call that. percentages: one a rank. models: folder of the fitted
    models that lut, formula and balanced need. multiple: tokens that balanced gives out at a time, 0 for what suits the
    platform.
    new_tokens: decoded behind the longest prompt, 0 for no decode. A cell is measured `repetitions` times, or until it
    has taken cell_seconds; a slow rank alone would otherwise take most of a job.

    Raises ValueError, naming value and rule, for anything that could not be measured as asked.
    """

    platform: str
    label: str
    throttle: str
    percentages: tuple[int, ...]
    model: ModelSpec
    seq_lens: tuple[int, ...]
    strategies: tuple[str, ...]
    models: Path | None = None
    batch: int = 1
    new_tokens: int = 32
    block: str = "auto"
    transport: str = "auto"
    repetitions: int = 3
    cell_seconds: float = 10.0
    seed: int = 0
    multiple: int = 0

    def __post_init__(self) -> None:
        check_lengths("seq_lens", self.seq_lens)
        check_repetitions(self.repetitions, 0, self.seed)
        check_transport(self.transport)
        check_backend(self.block, DEVICE_TYPES.get(self.platform))
        for name, least in (("batch", 1), ("new_tokens", 0), ("multiple", 0), ("cell_seconds", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more")
        object.__setattr__(self, "strategies", check_strategies(self.strategies))
        longest = max(self.seq_lens) + self.new_tokens
        if longest > self.model.sizes.max_seq_len:
            raise ValueError(
                f"max_seq_len is {self.model.sizes.max_seq_len}, and the longest prompt with its {self.new_tokens} new "
                f"tokens is {longest}"
            )
        if min(self.seq_lens) < len(self.percentages):
            raise ValueError(f"a prompt of {min(self.seq_lens)} tokens is shorter than {len(self.percentages)} ranks")


@dataclass(frozen=True)
class ModelCell:
    """One thing that is measured: a strategy at a length, or all ranks alone at it.

    Of system `alone`, every rank computes the whole prompt by itself, all of them at the same time, each on its own
    device; `partition` is that of a group of one.
    """

    system: str
    allocator: str
    partition: Partition
    model_source: str = ""
    clamped: bool = False
    decodes: bool = False
    traced: bool = False

    @property
    def strategy(self) -> str:
        return name_of(self.partition.layout, self.allocator, self.model_source)

    @property
    def label(self) -> str:
        return f"{'alone' if self.system == 'alone' else self.strategy} at {self.partition.seq_len}"


def plan(job: ModelJob) -> tuple[tuple[ModelCell, ...], tuple[str, ...]]:
    """Everything that `job` measures at every length, and what the allocators had to say about it.

    The ranks alone come with the strategies, for the capacity bound and the fast device's own time. At the longest
    prompt, they and one strategy go on to decode (zigzag/balanced where it is measured, else the last), and a layer of
    the strategies in TRACED is traced. Raises ValueError if an allocator cannot do its work, for want of a model for
    one.
    """
    decoded = DECODED if DECODED in job.strategies else job.strategies[-1]
    cells, notes = [], []
    for seq_len in sorted(job.seq_lens, reverse=True):  # what is set up for the longest serves the others, too
        longest = seq_len == max(job.seq_lens)
        decodes = longest and job.new_tokens > 0
        cells.append(ModelCell("alone", "alone", Partition.contiguous((seq_len,)), decodes=decodes))
        for strategy in job.strategies:
            given = allocation(
                strategy.allocator,
                seq_len,
                percentages=job.percentages,
                profile=fitted_model(job.models, strategy, COST),
                layout=strategy.layout,
                multiple=job.multiple or MULTIPLES[job.platform],
            )
            cell = ModelCell(
                "ring",
                strategy.allocator,
                Partition(strategy.layout, given.block_lens),
                given.model_source,
                given.clamped,
                decodes and strategy == decoded,
                longest and strategy in TRACED,
            )
            cells.append(cell)
            notes += [f"{cell.label}: {note}" for note in given.notes]
    return tuple(cells), tuple(notes)
