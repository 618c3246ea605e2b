"""The job of `heteroring bench`: a throttle setting, a condition, and the cells interleaved under them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from heteroring.allocators.even import even
from heteroring.bench.base_job import Cell, SplitJob, check_lengths, check_warmup
from heteroring.bench.fms_requirements import check_layer
from heteroring.bench.shape import Shape
from heteroring.kernels.backend import BACKENDS, check_backend
from heteroring.launch.device import DEVICE_TYPES
from heteroring.results.rows import CONDITIONS, MODULES
from heteroring.results.strategy import BALANCED
from heteroring.ring.partition import Partition
from heteroring.words import check_distinct, choices

BASELINES = ("context_parallel", "sdpa")
# The profile that the cost model of a module is fitted to.
_COSTS = {"attention": "attention", "fms": "layer"}


@dataclass(frozen=True, kw_only=True)
class RingJob(SplitJob):
    """Settings of `heteroring bench` under one throttle setting.

    baselines: whether to measure those of PyTorch, too, on one GPU and by context parallelism. modules: which of the
    attention itself (`attention`) and the layer of the Foundation Model Stack around it (`fms`) are measured.
    fms_seq_lens: lengths of the latter, if not seq_lens. condition: how calls are timed (`Measurement`).
    """

    shape: Shape = field(default_factory=Shape)
    warmup: int = 1
    baselines: bool = field(default=False, metadata={"recorded_as": "peers"})
    modules: tuple[str, ...] = ("attention",)
    fms_seq_lens: tuple[int, ...] = ()
    condition: str = "rested"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_warmup(self.warmup)
        self._check_modules()
        self._check_condition()
        self._check_variants()
        if self.baselines and self.device_kind != "gpu":
            raise ValueError(
                f"platform: device kind {self.device_kind!r} has no baselines: "
                "PyTorch's context parallelism needs 'gpu'"
            )

    def _check_modules(self) -> None:
        check_distinct("modules", self.modules)
        for module in self.modules:
            if module not in MODULES:
                raise ValueError(f"module {module!r} is unknown: choose {choices(module, MODULES)}")
        if "fms" in self.modules:
            check_layer("module 'fms'", self.shape.head_dim)
        if self.fms_seq_lens:
            check_lengths("fms_seq_lens", self.fms_seq_lens)
            if "fms" not in self.modules:
                raise ValueError("fms_seq_lens is given, but module 'fms' is not measured")
        if self.baselines and "attention" not in self.modules:
            raise ValueError("baselines are measured beside module 'attention', which is not among the modules")

    def _check_condition(self) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition {self.condition!r} is unknown: choose {choices(self.condition, CONDITIONS)}")
        if self.condition == "captured" and (self.device_kind != "gpu" or self.modules != ("attention",)):
            raise ValueError(
                "condition 'captured' replays CUDA graphs: it needs device kind 'gpu' and module 'attention'"
            )
        if self.condition == "captured" and self.baselines:
            raise ValueError("condition 'captured' has no baselines: CUDA graphs of them are not measured")

    def _check_variants(self) -> None:
        if self.call_variants and self.modules != ("attention",):
            raise ValueError(
                f"strategies ask for {', '.join(self.call_variants)}: variants of a call are measured in "
                "module 'attention' alone"
            )
        for backend in set(self.call_variants) & set(BACKENDS):
            check_backend(backend, DEVICE_TYPES.get(self.device_kind))

    def lengths(self, module: str) -> tuple[int, ...]:
        """The sequence lengths at which `module` is measured."""
        return self.fms_seq_lens if module == "fms" and self.fms_seq_lens else self.seq_lens


@dataclass(frozen=True)
class RingCell(Cell):
    """One measured case of a module at a length: a strategy, a subset of the ranks, one rank alone, or a baseline."""

    module: str = "attention"

    @property
    def in_ring(self) -> bool:
        """Whether the ring computes it, and not one rank or PyTorch."""
        return self.system in ("ring", "subset")

    @property
    def label(self) -> str:
        """What the cell is, for messages."""
        if self.in_ring:
            what = super().label
        else:
            who = "context_parallel" if self.system == "context_parallel" else f"rank {self.rank_alone} alone"
            what = f"{who}{' by sdpa' * (self.system == 'sdpa')} at {self.partition.seq_len}"
        return what if self.module == "attention" else f"{self.module} {what}"

    @property
    def rank_alone(self) -> int:
        """The rank that holds every token, of a cell of system `alone` or `sdpa`."""
        return self.partition.block_lens.index(self.partition.seq_len)


def cells_of(job: RingJob) -> tuple[tuple[RingCell, ...], tuple[str, ...]]:
    """All cells that `job` measures at every length, and the allocators' notes.

    Each rank alone is measured beside the strategies, for the capacity bound and the fast device's own time; and so are
    rings of the fastest ranks, for the gain from leaving others out. Raises ValueError if an allocator fails, for
    instance for lack of a fitted model.
    """
    cells, notes = [], []
    for module in job.modules:
        for seq_len in job.lengths(module):
            for strategy in job.strategies:
                cell, said = RingCell.of_ring(job, strategy, seq_len, _COSTS[module], module=module)
                cells.append(cell)
                notes += said
            cells += [_subset_cell(job, count, module, seq_len) for count in subsets(job)]
            cells += _alone_cells("alone", module, seq_len, len(job.percentages))
            if job.baselines and module == "attention":
                cells += _baseline_cells(seq_len, len(job.percentages))
    return tuple(cells), tuple(notes)


def subsets(job: RingJob) -> range:
    """The numbers of fastest ranks whose rings are measured beside those of all ranks: from 2 to all but one.

    They are split by strategy BALANCED, and measured only where it is.
    """
    return range(2, len(job.percentages)) if BALANCED in job.strategies else range(0)


def _subset_cell(job: RingJob, count: int, module: str, seq_len: int) -> RingCell:
    """The ring over the `count` ranks of the highest percentages; of equal ones, the first."""
    ranks = range(len(job.percentages))
    members = sorted(sorted(ranks, key=lambda rank: -job.percentages[rank])[:count])
    few = replace(job, percentages=tuple(job.percentages[rank] for rank in members))
    cell, _ = RingCell.of_ring(few, BALANCED, seq_len, _COSTS[module], module=module)
    lens = dict(zip(members, cell.partition.block_lens, strict=True))
    whole = Partition(cell.partition.layout, tuple(lens.get(rank, 0) for rank in ranks))
    return replace(cell, system="subset", allocator=f"fastest{count}", partition=whole)


def _alone_cells(system: str, module: str, seq_len: int, ranks: int) -> Iterator[RingCell]:
    for rank in range(ranks):
        block_lens = tuple(seq_len * (other == rank) for other in range(ranks))
        yield RingCell(system, "alone", Partition.contiguous(block_lens), module=module)


def _baseline_cells(seq_len: int, ranks: int) -> Iterator[RingCell]:
    if seq_len % (2 * ranks):
        raise ValueError(f"seq_len {seq_len} is not a multiple of {2 * ranks}: context_parallel cannot share it out")
    yield RingCell("context_parallel", "even", Partition.zigzag(even(seq_len, ranks)))
    yield from _alone_cells("sdpa", "attention", seq_len, ranks)
