"""The sharded KV cache, and the rule that says which rank keeps a new token's KV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from heteroring.fms.arguments import positive_number
from heteroring.fms.models import attention_layers
from heteroring.fms.weights import device_of, dtype_of, fingerprint
from heteroring.kernels.block import Block
from heteroring.ring.partition import Partition
from heteroring.ring.process_group import members

KV = tuple[torch.Tensor, torch.Tensor]


def next_owner(held: Sequence[int], speeds: Sequence[float]) -> int:
    """The rank that keeps the next token's KV when the ranks hold `held` tokens each and decode at `speeds`.

    It is the one that would still be done first with the token: the least (held + 1) / speed, and of equals the
    lowest rank. A step of decode takes as long as its slowest rank takes to read its KV, so that this is the greedy
    minimum of a step's time, whatever the prefill's shares were: a rank that got a small shard of the prompt because
    it computes slowly takes all new tokens until it holds as many as the others for its speed.

    Speeds of decode are not those of prefill. Reading KV is bound by memory bandwidth, which a limit on
    multiprocessors (MPS) hardly throttles; equal speeds are therefore the default everywhere.
    """
    return min(range(len(held)), key=lambda rank: ((held[rank] + 1) / speeds[rank], rank))


def capacities(held: Sequence[int], speeds: Sequence[float], new_tokens: int) -> tuple[int, ...]:
    """Tokens that each rank needs room for when `new_tokens` follow those held, by the rule of `next_owner`."""
    room = list(held)
    for _ in range(new_tokens):
        room[next_owner(room, speeds)] += 1
    return tuple(room)


def check_speeds(speeds: Sequence[float] | None, world_size: int) -> tuple[float, ...]:
    """`speeds` as a tuple, equal ones for None. Raises ValueError unless they are positive, one a rank."""
    if speeds is None:
        return (1.0,) * world_size
    listed = speeds.tolist() if isinstance(speeds, np.ndarray | torch.Tensor) else speeds
    rule = f"decode_speeds are {speeds!r}: {world_size} ranks need {world_size} positive numbers, in the order of ranks"
    if not isinstance(listed, Sequence) or len(listed) != world_size:
        raise ValueError(rule)
    try:
        return tuple(positive_number("a speed", speed) for speed in listed)
    except ValueError as error:
        raise ValueError(rule) from error


@dataclass
class RingCache:
    """This rank's KV of every layer, and how many tokens each rank holds.

    `layers` are (keys, values), each [B, Hkv, capacity, D], allocated once with the room that `capacities` says;
    `held` and `capacities` are tokens per rank, the same on all of them. It belongs to the model with `fingerprint`,
    the `partition` of the prompt and the `group` it was prefilled with.
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
    block: str | Block

    @property
    def seq_len(self) -> int:
        """Tokens cached so far, over all ranks: the position of the next one."""
        return sum(self.held)

    @property
    def room(self) -> int:
        """Tokens that may still follow."""
        return sum(self.capacities) - self.seq_len


@torch.inference_mode(False)  # a cache that is filled in inference mode may be written to outside it, too
def empty_cache(
    model: nn.Module,
    partition: Partition,
    batch: int,
    new_tokens: int,
    speeds: Sequence[float] | None,
    group: dist.ProcessGroup | None,
    block: str | Block,
) -> RingCache:
    """Room for this rank's part of `batch` prompts of `partition` and of `new_tokens` more, nothing in it yet."""
    group, rank, world_size = members(group)
    speeds = check_speeds(speeds, world_size)
    room = capacities(partition.block_lens, speeds, new_tokens)
    options: dict[str, Any] = {"dtype": dtype_of(model), "device": device_of(model)}
    layers = [
        (
            torch.empty(batch, layer.kvheads, room[rank], layer.emb_kq_per_head, **options),
            torch.empty(batch, layer.kvheads, room[rank], layer.emb_v_per_head, **options),
        )
        for layer in attention_layers(model)
    ]
    return RingCache(
        layers, partition, partition.block_lens, room, speeds, batch, fingerprint(model), rank, group, block
    )
