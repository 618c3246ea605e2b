"""The sharded KV cache, and the rule by which a rank is chosen to keep a new token's KV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from heteroring.arguments import positive
from heteroring.fms.models import attention_layers
from heteroring.fms.weights import device_of, dtype_of, fingerprint
from heteroring.kernels.backend import Backend
from heteroring.ring.partition import Partition
from heteroring.ring.process_group import members

KV = tuple[torch.Tensor, torch.Tensor]


def next_owner(held: Sequence[int], speeds: Sequence[float]) -> int:
    """The rank that keeps the next token's KV.

    It is the rank with the least (held + 1) / speed, and among equals the lowest. A step of decode takes as long as the
    slowest rank takes to read its KV, so this minimises the time of the next step, whatever the prefill's shares were:
    a rank whose shard of the prompt is small because it computes slowly takes all new tokens until its share matches
    its speed.

    Speeds of decode are not those of prefill. Reading KV is bound by memory bandwidth, which a limit on SMs (MPS)
    reduces less than it does computing, so the default is equal speeds.

    Args:
        held: Tokens that each rank holds, in rank order.
        speeds: Relative speeds of decode, in rank order.

    Returns:
        The rank, from 0.
    """
    return min(range(len(held)), key=lambda rank: ((held[rank] + 1) / speeds[rank], rank))


def capacities(held: Sequence[int], speeds: Sequence[float], new_tokens: int) -> tuple[int, ...]:
    """Tokens that each rank needs room for, by the rule of `next_owner`.

    Args:
        held: Tokens that each rank holds, in rank order.
        speeds: Relative speeds of decode, in rank order.
        new_tokens: Tokens that follow those held.

    Returns:
        Tokens by rank.
    """
    room = list(held)
    for _ in range(new_tokens):
        room[next_owner(room, speeds)] += 1
    return tuple(room)


def check_speeds(speeds: Sequence[float] | None, world_size: int) -> tuple[float, ...]:
    """`speeds` as a tuple, equal speeds for None. Raises ValueError unless there is one positive speed per rank."""
    if speeds is None:
        return (1.0,) * world_size
    rule = f"decode_speeds are {speeds!r}: {world_size} ranks need {world_size} positive numbers, in the order of ranks"
    try:
        listed = speeds.tolist() if isinstance(speeds, np.ndarray | torch.Tensor) else speeds
    except RuntimeError as error:  # of a sparse tensor, or one without data
        raise ValueError(rule) from error
    if not isinstance(listed, Sequence) or len(listed) != world_size:
        raise ValueError(rule)
    try:
        return tuple(positive("a speed", speed) for speed in listed)
    except ValueError as error:
        raise ValueError(rule) from error


@dataclass
class RingCache:
    """This rank's KV of every layer, and how many tokens each rank holds. `ring_prefill` creates it.

    A step of decode reads the values that differ from step to step on the device, so one CUDA graph serves all steps:
    in step i every rank writes the new token's KV into slot turns[i, 0], behind its cached tokens, and attends to
    turns[i, 1] tokens; only the rank that keeps the new token counts it among them.

    Args:
        layers: (keys, values) per layer, each [B, Hkv, capacities[rank] + 1, D], allocated once. The last slot is for
            tokens that other ranks keep when this one is full.
        partition: Which tokens of the prompt each rank holds; if it was computed in chunks, only how many.
        held: Tokens cached per rank, as the host knows it; the same tuple on all ranks.
        capacities: Tokens per rank that there is room for, the same tuple on all ranks.
        speeds: Relative speeds of decode per rank (`next_owner`).
        batch: Number of sequences.
        fingerprint: Identifies the language model that filled the cache (`heteroring.fms.weights.fingerprint`).
        rank: This rank.
        group: The process group of the prefill.
        backend: The backend of decode.
        turns: int64 [T + 1, 3] on the device: slot, tokens attended to, and position of each of the T new tokens that
            `schedule_turns` found room for. The last row is for a step on a full cache.
        steps: int64 [1] on the device: how many of the T new tokens are cached.
        full: Tokens cached over all ranks once there is no room for another one; 0 before `schedule_turns`.
    """

    layers: list[KV]
    partition: Partition
    held: tuple[int, ...]
    capacities: tuple[int, ...]
    speeds: tuple[float, ...]
    batch: int
    fingerprint: str
    rank: int
    group: dist.ProcessGroup | None
    backend: str | Backend
    turns: torch.Tensor = field(default_factory=torch.Tensor)
    steps: torch.Tensor = field(default_factory=torch.Tensor)
    full: int = 0

    @property
    def seq_len(self) -> int:
        """Tokens cached so far, over all ranks: the position of the next token."""
        return sum(self.held)

    @property
    def room(self) -> int:
        """Tokens that there is still room for."""
        return max(0, self.full - self.seq_len)

    @torch.inference_mode(False)
    def schedule_turns(self) -> None:
        """Schedule which rank keeps each of the next tokens, until the rank that should keep one has no room."""
        after, turns = list(self.held), []
        while after[owner := next_owner(after, self.speeds)] < self.capacities[owner]:
            turns.append((after[self.rank], after[self.rank] + (owner == self.rank), sum(after)))
            after[owner] += 1
        turns.append((after[self.rank], after[self.rank], sum(after)))
        device = self.layers[0][0].device
        self.turns, self.steps = torch.tensor(turns, device=device), torch.zeros(1, dtype=torch.int64, device=device)
        self.full = sum(after)

    def count(self) -> None:
        """Count a token that a step of decode has cached, on the host; the step itself counts it on the device."""
        owner = next_owner(self.held, self.speeds)
        self.held = tuple(held + (rank == owner) for rank, held in enumerate(self.held))


@torch.inference_mode(False)  # so that a cache filled in inference mode can also be written to outside it
def empty_cache(
    model: nn.Module,
    partition: Partition,
    batch: int,
    new_tokens: int,
    speeds: Sequence[float] | None,
    group: dist.ProcessGroup | None,
    backend: str | Backend,
) -> RingCache:
    """Allocate an empty cache.

    Args:
        model: The language model.
        partition: Which tokens of the prompts each rank will hold.
        batch: Sequences.
        new_tokens: Tokens behind the prompts, over all ranks, that it has room for.
        speeds: Relative speeds of decode per rank, by which this room is spread; None for equal speeds.
        group: The process group; None for all processes.
        backend: Name of a backend, "auto", or a Backend.

    Returns:
        This rank's cache.
    """
    group, rank, world_size = members(group)
    speeds = check_speeds(speeds, world_size)
    room = capacities(partition.block_lens, speeds, new_tokens)
    options: dict[str, Any] = {"dtype": dtype_of(model), "device": device_of(model)}
    layers = [
        (
            torch.empty(batch, layer.kvheads, room[rank] + 1, layer.emb_kq_per_head, **options),
            torch.empty(batch, layer.kvheads, room[rank] + 1, layer.emb_v_per_head, **options),
        )
        for layer in attention_layers(model)
    ]
    return RingCache(
        layers, partition, (0,) * world_size, room, speeds, batch, fingerprint(model), rank, group, backend
    )


@torch.inference_mode(False)
def make_room(cache: RingCache, tokens: int) -> None:
    """Move the layers of this rank's cache that have room for less than `tokens` to larger ones, one at a time."""
    held = cache.held[cache.rank]
    for index, layer in enumerate(cache.layers):
        if layer[0].shape[2] <= tokens:  # there is one slot more than the capacity
            keys, values = (x.new_empty(*x.shape[:2], tokens + 1, x.shape[3]) for x in layer)
            for old, new in zip(layer, (keys, values), strict=True):
                new[:, :, :held].copy_(old[:, :, :held])
            cache.layers[index] = keys, values
