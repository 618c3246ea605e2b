"""The rows of a measured language model: prefill and decode, one traced layer, and chunks at changing speeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heteroring.results.column_rules import (
    BOOLEAN,
    COUNT,
    INDEX,
    INDICES,
    NAME,
    PERCENTAGES,
    POSITIVE,
    TIME,
    TIMES,
    one_of,
)
from heteroring.results.rows import DTYPES, FIT_SOURCES, Identity, check_columns, check_split, column
from heteroring.results.strategy import BALANCED, EVEN
from heteroring.ring.partition import LAYOUTS
from heteroring.throttle import THROTTLES

PHASES = ("prefill", "decode")
MODEL_SYSTEMS = ("ring", "alone", "fms")
MODEL_COLUMNS = ("architecture", "variant", "layers", "emb_dim", "heads", "kv_heads", "head_dim", "dtype")
# Columns that distinguish the cells of a phase at a length.
WAY = ("batch", "captured", "compiled")
# Strategies of which a layer is traced, and the one that decodes where it is measured.
TRACED = (EVEN, BALANCED)
DECODED = BALANCED
# Splits of a chunked prefill while a rank's speed changes: two fixed, one adaptive, one oracle.
CHUNK_SPLITS = (EVEN, BALANCED, "rebalanced", "oracle")
TRACE_KINDS = ("layer", "block", "wait", "sent", "ready")


@dataclass(frozen=True)
class ModelRow:
    """One repetition of one phase of a whole model by one strategy. Lists have one entry per rank.

    system: `ring`, or `alone`: one rank computes the whole model by itself, the others hold nothing; or `fms`: the same
    by FMS's own generate. latency_ms of a prefill is the time to first token, from the ranks' common start until every
    rank has the last token's logits; of a decode, the time per token with seq_len tokens in the cache, the mean from
    the third of new_tokens (0 in a prefill) on.
    job: which of the independently started jobs of these percentages, from 1; repetitions count from 0 in each.
    captured: whether steps of decode are replayed as a CUDA graph; compiled: whether the model was, by model.compile().
    limit_ms: the least time to read weights and KV once per token, at the bandwidth measured in the same job, on the
    slowest rank at work; 0 in a prefill, and where no bandwidth was measured.
    block_lens are the prompt's. peak_memory_bytes: the peak memory of tensors on the rank's device meanwhile, weights
    and the ring's symmetric buffers included (0 on a CPU).

    Raises ValueError, naming column, value and rule, if a value breaks its rule.
    """

    identity: ClassVar = Identity(
        cell=(
            *("job", "phase", "system", *WAY, "layout", "allocator", "seq_len", "percentages", "block_lens"),
            "new_tokens",
        ),
        alike=("platform", *MODEL_COLUMNS, "throttle"),
    )

    platform: str = column(NAME)
    phase: str = column(one_of(*PHASES))
    system: str = column(one_of(*MODEL_SYSTEMS))
    architecture: str = column(NAME)
    variant: str = column(NAME)
    layers: int = column(COUNT)
    emb_dim: int = column(COUNT)
    heads: int = column(COUNT)
    kv_heads: int = column(COUNT)
    head_dim: int = column(COUNT)
    dtype: str = column(one_of(*DTYPES))
    batch: int = column(COUNT)
    seq_len: int = column(COUNT)
    new_tokens: int = column(INDEX)
    layout: str = column(one_of(*LAYOUTS))
    allocator: str = column(NAME)
    model_source: str = column(one_of("", *FIT_SOURCES))
    clamped: bool = column(BOOLEAN)
    throttle: str = column(one_of(*THROTTLES))
    percentages: tuple[int, ...] = column(PERCENTAGES)
    block_lens: tuple[int, ...] = column(INDICES)
    block: str = column(NAME)
    transport: str = column(NAME)
    job: int = column(COUNT)
    repetition: int = column(INDEX)
    latency_ms: float = column(POSITIVE)
    peak_memory_bytes: tuple[int, ...] = column(INDICES)
    captured: bool = column(BOOLEAN, default=False)
    compiled: bool = column(BOOLEAN, default=False)
    limit_ms: float = column(TIME, default=0.0)

    def __post_init__(self) -> None:
        check_columns(self)
        check_split(self, "block_lens", "peak_memory_bytes")
        if (self.phase == "decode") != (self.new_tokens > 0):
            raise ValueError(f"column new_tokens: {self.new_tokens} in phase {self.phase}")
        if self.phase == "prefill" and (self.captured or self.limit_ms):
            raise ValueError(f"columns captured and limit_ms: {self.captured} and {self.limit_ms} in a prefill")


@dataclass(frozen=True)
class TraceRow:
    """One event on a rank's compute stream between two points in time, in one layer of a prefill.

    start_ms and stop_ms count from the ranks' common start of the prefill. kind `layer`: the whole layer; `block`: a
    backend call, of ring step `step`; `wait`: the stream is held until the KV of ring step `step` is there (of
    step 0: until all ranks have come to the attention, as they must on a CPU, where they agree on each call); `sent`:
    it is held at the end of the attention until the rank's own KV has gone out, last to the reader of ring step
    `step`; `ready`: the moment (start_ms = stop_ms) at which the rank's own KV may be sent, and others' received. step
    is 0 for layer and ready. In step s, rank r receives from rank r - s and sends to rank r + s.

    Raises ValueError, naming column, value and rule, if a value breaks its rule.
    """

    identity: ClassVar = Identity(
        cell=("job", "strategy", "seq_len", "percentages", "layer", "rank", "kind", "step"),
        alike=("platform",),
        repeated=False,
    )

    platform: str = column(NAME)
    strategy: str = column(NAME)
    seq_len: int = column(COUNT)
    percentages: tuple[int, ...] = column(PERCENTAGES)
    job: int = column(COUNT)
    layer: int = column(INDEX)
    rank: int = column(INDEX)
    kind: str = column(one_of(*TRACE_KINDS))
    step: int = column(INDEX)
    start_ms: float = column(TIME)
    stop_ms: float = column(TIME)

    def __post_init__(self) -> None:
        check_columns(self)
        if self.stop_ms < self.start_ms:
            raise ValueError(f"column stop_ms: {self.stop_ms} comes before start_ms {self.start_ms}")


@dataclass(frozen=True)
class ChunkRow:
    """One chunk of a prefill during which a rank's speed changes. Lists have one entry per rank.

    split: `contiguous/even`, `zigzag/balanced` by the speeds at the start, `rebalanced` by `heteroring.Rebalancer`, or
    `oracle`, which is given each chunk's speeds. prompt_len: tokens of the prompt; chunk: its number, from 0; seq_len
    and block_lens: its tokens; percentages: its ranks'. latency_ms: from the end of the chunk before, as rank 0's host
    sees it, which may run ahead of a GPU. busy_ms: time computing, the time that the throttle adds included. On a GPU,
    it is measured in a quarter of the layers and scaled up to all.

    Raises ValueError, naming column, value and rule, if a value breaks its rule.
    """

    identity: ClassVar = Identity(
        cell=("split", "prompt_len", "chunk"), alike=("platform", *MODEL_COLUMNS, "throttle", "prompt_len")
    )

    platform: str = column(NAME)
    split: str = column(one_of(*CHUNK_SPLITS))
    architecture: str = column(NAME)
    variant: str = column(NAME)
    layers: int = column(COUNT)
    emb_dim: int = column(COUNT)
    heads: int = column(COUNT)
    kv_heads: int = column(COUNT)
    head_dim: int = column(COUNT)
    dtype: str = column(one_of(*DTYPES))
    batch: int = column(COUNT)
    prompt_len: int = column(COUNT)
    chunk: int = column(INDEX)
    seq_len: int = column(COUNT)
    throttle: str = column(one_of(*THROTTLES))
    percentages: tuple[int, ...] = column(PERCENTAGES)
    block_lens: tuple[int, ...] = column(INDICES)
    repetition: int = column(INDEX)
    latency_ms: float = column(POSITIVE)
    busy_ms: tuple[float, ...] = column(TIMES)

    def __post_init__(self) -> None:
        check_columns(self)
        check_split(self, "block_lens", "busy_ms")
