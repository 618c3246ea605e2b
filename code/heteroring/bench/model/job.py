"""The job of `heteroring model`: a language model, a throttle setting, and the cells interleaved under it."""

from __future__ import annotations

from dataclasses import dataclass, field

from heteroring.bench.base_job import Cell, SplitJob
from heteroring.bench.model.spec import ModelSpec
from heteroring.results.model_rows import DECODED, TRACED
from heteroring.ring.partition import Partition

# The profile that the cost of a model's blocks is fitted to.
COST = "block"
# Of the tokens decoded, the first is that of the prefill; a CUDA graph is recorded after the step of the second.
UNTIMED_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class ModelJob(SplitJob):
    """What `heteroring model` measures under one throttle setting.

    new_tokens: decoded behind the longest prompt, 0 for no decode; steps are timed from the third token on, and
    replayed as a CUDA graph where there is one, unless `eager`. compiled: by model.compile(). baselines: FMS's own
    generate is measured on each rank, too. decode_only: no prompt is computed; every strategy decodes, at every length,
    behind synthetic KV. A cell is measured `repetitions` times, or until it has taken cell_seconds; a slow rank alone
    would otherwise take most of a job.
    """

    model: ModelSpec
    batch: int = 1
    new_tokens: int = 32
    repetitions: int = 3
    cell_seconds: float = 10.0
    eager: bool = False
    compiled: bool = False
    baselines: bool = field(default=False, metadata={"recorded_as": "peers"})
    decode_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("batch", 1), ("cell_seconds", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more")
        if self.new_tokens <= UNTIMED_TOKENS and self.new_tokens != 0:
            raise ValueError(
                f"new_tokens is {self.new_tokens}: it must be 0, or {UNTIMED_TOKENS + 1} or more, of which "
                f"{UNTIMED_TOKENS} are not timed"
            )
        if self.decode_only and not self.new_tokens:
            raise ValueError("decode_only is set, and new_tokens is 0: nothing is left to measure")
        if self.decode_only and self.baselines:
            raise ValueError("decode_only and peers exclude each other: FMS's generate computes the prompt itself")
        longest = max(self.seq_lens) + self.new_tokens
        if longest > self.model.sizes.max_seq_len:
            raise ValueError(
                f"max_seq_len is {self.model.sizes.max_seq_len}, and the longest prompt with its {self.new_tokens} new "
                f"tokens is {longest}"
            )
        if self.call_variants:
            raise ValueError(
                f"strategies ask for {', '.join(self.call_variants)}: variants of a call are not measured of models"
            )
        if min(self.seq_lens) < len(self.percentages):
            raise ValueError(f"a prompt of {min(self.seq_lens)} tokens is shorter than {len(self.percentages)} ranks")


@dataclass(frozen=True)
class ModelCell(Cell):
    """One thing that is measured: a strategy at a length, or all ranks alone at it.

    Of systems `alone` and `fms` (by FMS's generate), every rank computes the whole prompt by itself, all of them at the
    same time, each on its own device; `partition` is that of a group of one.
    """

    decodes: bool = False
    traced: bool = False

    @property
    def label(self) -> str:
        """What the cell is, for messages."""
        return super().label if self.system == "ring" else f"{self.system} at {self.partition.seq_len}"


def cells_of(job: ModelJob) -> tuple[tuple[ModelCell, ...], tuple[str, ...]]:
    """All cells that `job` measures at every length, and the allocators' notes.

    Each rank alone is measured beside the strategies, for the capacity bound and the fast device's own time. At the
    longest prompt, the ranks alone and one strategy go on to decode (zigzag/balanced where it is measured, else the
    last), and a layer of the strategies in TRACED is traced. In a decode_only job, all decode, at every length. Raises
    ValueError if an allocator fails, for instance for lack of a fitted model.
    """
    decoded = DECODED if DECODED in job.strategies else job.strategies[-1]
    cells, notes = [], []
    for seq_len in sorted(job.seq_lens, reverse=True):  # buffers allocated for the longest serve the others, too
        longest = seq_len == max(job.seq_lens)
        decodes = job.new_tokens > 0 and (longest or job.decode_only)
        for system in ("alone", "fms") if job.baselines else ("alone",):
            cells.append(ModelCell(system, "alone", Partition.contiguous((seq_len,)), decodes=decodes))
        for strategy in job.strategies:
            traced = longest and strategy in TRACED and not job.decode_only
            flags = {"decodes": decodes and (job.decode_only or strategy == decoded), "traced": traced}
            cell, said = ModelCell.of_ring(job, strategy, seq_len, COST, **flags)
            cells.append(cell)
            notes += said
    return tuple(cells), tuple(notes)
