"""The job of `heteroring model`: a language model, a throttle setting, and the cells interleaved under it."""

from __future__ import annotations

from dataclasses import dataclass

from heteroring.bench.base_job import Cell, SplitJob
from heteroring.bench.model.spec import ModelSpec
from heteroring.results.model_rows import DECODED, TRACED
from heteroring.ring.partition import Partition

# The profile that the cost of a model's blocks is fitted to.
COST = "block"
# Of the tokens decoded, the first is that of the prefill, and the second one's step is what a graph is recorded after.
UNTIMED_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class ModelJob(SplitJob):
    """What `heteroring model` measures under one throttle setting.

    new_tokens: decoded behind the longest prompt, 0 for no decode; steps are timed from the third token on, and
    replayed as a CUDA graph where there is one. A cell is measured `repetitions` times, or until it has taken
    cell_seconds; a slow rank alone would otherwise take most of a job.
    """

    model: ModelSpec
    batch: int = 1
    new_tokens: int = 32
    repetitions: int = 3
    cell_seconds: float = 10.0

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
        longest = max(self.seq_lens) + self.new_tokens
        if longest > self.model.sizes.max_seq_len:
            raise ValueError(
                f"max_seq_len is {self.model.sizes.max_seq_len}, and the longest prompt with its {self.new_tokens} new "
                f"tokens is {longest}"
            )
        if self.call_variants:
            raise ValueError(
                f"strategies ask for {', '.join(self.call_variants)}: what computes and carries a model is not varied"
            )
        if min(self.seq_lens) < len(self.percentages):
            raise ValueError(f"a prompt of {min(self.seq_lens)} tokens is shorter than {len(self.percentages)} ranks")


@dataclass(frozen=True)
class ModelCell(Cell):
    """One thing that is measured: a strategy at a length, or all ranks alone at it.

    Of system `alone`, every rank computes the whole prompt by itself, all of them at the same time, each on its own
    device; `partition` is that of a group of one.
    """

    decodes: bool = False
    traced: bool = False

    @property
    def label(self) -> str:
        return f"alone at {self.partition.seq_len}" if self.system == "alone" else super().label


def plan(job: ModelJob) -> tuple[tuple[ModelCell, ...], tuple[str, ...]]:
    """Everything that `job` measures at every length, and what the allocators had to say about it.

    The ranks alone come with the strategies, for the capacity bound and the fast device's own time. At the longest
    prompt, they and one strategy go on to decode (zigzag/balanced where it is measured, else the last), and a layer of
    the strategies in TRACED is traced. Raises ValueError if an allocator cannot do its work, for want of a model for
    one.
    """
    decoded = DECODED if DECODED in job.strategies else job.strategies[-1]
    cells, notes = [], []
    for seq_len in sorted(job.seq_lens, reverse=True):  # buffers allocated for the longest serve the others, too
        longest = seq_len == max(job.seq_lens)
        decodes = longest and job.new_tokens > 0
        cells.append(ModelCell("alone", "alone", Partition.contiguous((seq_len,)), decodes=decodes))
        for strategy in job.strategies:
            flags = {"decodes": decodes and strategy == decoded, "traced": longest and strategy in TRACED}
            cell, said = ModelCell.of_ring(job, strategy, seq_len, COST, **flags)
            cells.append(cell)
            notes += said
    return tuple(cells), tuple(notes)
