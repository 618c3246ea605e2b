"""The job of `heteroring bench`: a throttle setting, a condition, and the cells interleaved under them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from heteroring.allocators import allocation
from heteroring.allocators.even import even
from heteroring.bench.requirements import check_layer
from heteroring.bench.shape import Shape, check_lengths, check_repetitions
from heteroring.kernels.backend import check_backend
from heteroring.launch.device import DEVICE_TYPES
from heteroring.results.rows import CONDITIONS, MODULES
from heteroring.results.strategy import FITTED, Strategy, check_strategies, name_of
from heteroring.ring.partition import Partition
from heteroring.ring.transport.transport import check_transport
from heteroring.words import choices

BASELINES = ("context_parallel", "sdpa")
# The profile that what a module costs is fitted to.
_COSTS = {"attention": "attention", "fms": "layer"}
# A head and a tail of whole tiles of queries, 128 on every GPU that was tuned for.
MULTIPLES = {"cpu": 1, "gpu": 256}


@dataclass(frozen=True)
class Job:
    """What `heteroring bench` measures under one throttle setting.

    platform: what it runs on; label: what its rows call that. percentages: one a rank. models: folder of the fitted
    models that lut, formula and balanced need. multiple: tokens that balanced gives out at a time, 0 for what suits the
    platform. peers: whether to measure the baselines of PyTorch, too, on one GPU and by context parallelism. modules:
    what every strategy is measured of, the attention itself (`attention`) and the layer of the Foundation Model Stack
    around it (`fms`). fms_seq_lens: lengths of the latter, if not seq_lens. condition: how calls are timed
    (`Measurement`). number: which of several independently started jobs of the same kind this is, from 1.

    Raises ValueError, naming value and rule, for anything that could not be measured as asked.
    """

    platform: str
    label: str
    throttle: str
    percentages: tuple[int, ...]
    seq_lens: tuple[int, ...]
    strategies: tuple[str, ...]
    shape: Shape = field(default_factory=Shape)
    models: Path | None = None
    block: str = "auto"
    transport: str = "auto"
    repetitions: int = 5
    warmup: int = 1
    seed: int = 0
    peers: bool = False
    multiple: int = 0
    modules: tuple[str, ...] = ("attention",)
    fms_seq_lens: tuple[int, ...] = ()
    condition: str = "rested"
    number: int = 1

    def __post_init__(self) -> None:
        check_lengths("seq_lens", self.seq_lens)
        check_repetitions(self.repetitions, self.warmup, self.seed)
        check_transport(self.transport)
        check_backend(self.block, DEVICE_TYPES.get(self.platform))
        object.__setattr__(self, "strategies", check_strategies(self.strategies))
        if self.multiple < 0:
            raise ValueError(f"multiple is {self.multiple}: it must be 1 or more, or 0 for what suits the platform")
        if self.number < 1:
            raise ValueError(f"job is {self.number}: it must be 1 or more")
        self._check_modules()
        self._check_condition()
        if self.peers and self.platform != "gpu":
            raise ValueError(f"platform {self.platform!r} has no baselines: PyTorch's context parallelism needs 'gpu'")

    def _check_modules(self) -> None:
        if not self.modules:
            raise ValueError("modules is empty")
        for module in self.modules:
            if module not in MODULES:
                raise ValueError(f"module {module!r} is unknown: choose {choices(module, MODULES)}")
            if self.modules.count(module) > 1:
                raise ValueError(f"modules holds {module} twice")
        if "fms" in self.modules:
            check_layer("module 'fms'", self.shape.head_dim)
        if self.fms_seq_lens:
            check_lengths("fms_seq_lens", self.fms_seq_lens)
            if "fms" not in self.modules:
                raise ValueError("fms_seq_lens is given, but module 'fms' is not measured")
        if self.peers and "attention" not in self.modules:
            raise ValueError("baselines are measured beside module 'attention', which is not among the modules")

    def _check_condition(self) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition {self.condition!r} is unknown: choose {choices(self.condition, CONDITIONS)}")
        if self.condition == "captured" and (self.platform != "gpu" or self.modules != ("attention",)):
            raise ValueError("condition 'captured' replays CUDA graphs: it needs platform 'gpu' and module 'attention'")
        if self.condition == "captured" and self.peers:
            raise ValueError("condition 'captured' has no baselines: CUDA graphs of them are not measured")

    def lengths(self, module: str) -> tuple[int, ...]:
        """Those that `module` is measured at."""
        return self.fms_seq_lens if module == "fms" and self.fms_seq_lens else self.seq_lens


@dataclass(frozen=True)
class Cell:
    """One thing that is measured: a strategy at a length, or a rank alone at it, of a module."""

    system: str
    allocator: str
    partition: Partition
    model_source: str = ""
    clamped: bool = False
    module: str = "attention"

    @property
    def label(self) -> str:
        return self._what if self.module == "attention" else f"{self.module} {self._what}"

    @property
    def _what(self) -> str:
        if self.system == "alone":
            return f"rank {self.rank_alone} alone at {self.partition.seq_len}"
        if self.system in BASELINES:
            return f"{self.system} at {self.partition.seq_len}"
        strategy = name_of(self.partition.layout, self.allocator, self.model_source)
        return f"{strategy} at {self.partition.seq_len}"

    @property
    def rank_alone(self) -> int:
        """The rank that holds every token, of a cell of system `alone` or `sdpa`."""
        return self.partition.block_lens.index(self.partition.seq_len)


def plan(job: Job) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """Everything that `job` measures at every length, and what the allocators had to say about it.

    Each rank alone comes with the strategies, for the capacity bound and the fast device's own time. Raises
    ValueError if an allocator cannot do its work, for want of a model for one.
    """
    cells, notes = [], []
    for module in job.modules:
        for seq_len in job.lengths(module):
            for strategy in job.strategies:
                cell, said = _ring_cell(job, module, strategy, seq_len)
                cells.append(cell)
                notes += [f"{cell.label}: {note}" for note in said]
            cells += _alone_cells(module, seq_len, len(job.percentages))
            if job.peers and module == "attention":
                cells += _baseline_cells(seq_len, len(job.percentages))
    return tuple(cells), tuple(notes)


def _ring_cell(job: Job, module: str, strategy: Strategy, seq_len: int) -> tuple[Cell, tuple[str, ...]]:
    given = allocation(
        strategy.allocator,
        seq_len,
        percentages=job.percentages,
        profile=fitted_model(job.models, strategy, _COSTS[module]),
        layout=strategy.layout,
        multiple=job.multiple or MULTIPLES[job.platform],
    )
    partition = Partition(strategy.layout, given.block_lens)
    return Cell("ring", strategy.allocator, partition, given.model_source, given.clamped, module), given.notes


def _alone_cells(module: str, seq_len: int, ranks: int) -> Iterator[Cell]:
    for rank in range(ranks):
        block_lens = tuple(seq_len * (other == rank) for other in range(ranks))
        yield Cell("alone", "alone", Partition.contiguous(block_lens), module=module)


def _baseline_cells(seq_len: int, ranks: int) -> Iterator[Cell]:
    if seq_len % (2 * ranks):
        raise ValueError(f"seq_len {seq_len} is not a multiple of {2 * ranks}: context_parallel cannot share it out")
    yield Cell("context_parallel", "even", Partition.zigzag(even(seq_len, ranks)))
    yield Cell("sdpa", "alone", Partition.contiguous((seq_len, *(0,) * (ranks - 1))))


def fitted_model(models: Path | None, strategy: Strategy, cost: str) -> Path | None:
    """The file in folder `models` that `strategy` works with, or None if it needs none; `cost` is balanced's profile.

    Raises ValueError, naming the file, if it is needed and not there.
    """
    allocator, speeds = strategy.allocator, {each: f"{each}-{strategy.source}.json" for each in FITTED}
    name = (speeds | {"balanced": f"cost-{cost}.json"}).get(allocator)
    if name is None:
        return None
    if models is None:
        raise ValueError(f"allocator {allocator!r} needs a model: name the folder that holds {name}")
    path = models / name
    if not path.is_file():
        raise ValueError(f"allocator {allocator!r} needs the model {path}, which does not exist")
    return path
