"""Rebalanced prefill of a model: layer timing, and growth of the KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import add

import torch

from heteroring.allocators.apportion import apportion
from heteroring.allocators.waves import BLOCK_M
from heteroring.fms.cache import RingCache, capacities, make_room
from heteroring.kernels.backend import Backend
from heteroring.planning.rebalance import Rebalancer
from heteroring.ring.busy import BusyTime
from heteroring.ring.consistency import Call
from heteroring.ring.partition import Partition

SPARE = 16
"""A rank's cache gets room for 1 / SPARE more tokens than its share, because the shares may change."""


class LayerTimes(BusyTime):
    """Busy time of `layers` in one pass of a model: of each, its attention and all work since the attention before it.

    Args:
        backend: The backend of attention.
        layers: Which layers count.
        device: The model's device.
    """

    def __init__(self, backend: str | Backend, layers: range, device: torch.device) -> None:
        super().__init__(backend)
        self._layers, self._layer, self._model_device = layers, 0, device
        if 0 in layers:
            self.start(device)

    @contextmanager
    def attention(self) -> Iterator[str | Backend]:
        """Context for the attention of the next layer; yields the backend for it."""
        counts = self._layer in self._layers
        if counts:
            self.stop()
        yield self if counts else self._backend
        self._layer += 1
        if self._layer in self._layers:
            self.start(self._model_device)


def counted_layers(layers: int, device: torch.device) -> range:
    """Which of a model's layers are measured in each chunk.

    On CUDA they are the second quarter: the others keep their fused first step, and when the host asks for the times,
    half of the chunk is still queued, so that the GPU does not wait for the next split.
    """
    if device.type != "cuda":
        return range(layers)
    return range(layers // 4, max(layers // 2, layers // 4 + 1))


def check_rebalance(rebalance: object, partition: object, chunk: int | None, world_size: int) -> None:
    """Check what `ring_prefill` is given as `rebalance`.

    Args:
        rebalance: A bool, or a Rebalancer of all ranks in place of a partition.
        partition: The partition; None where there is none.
        chunk: Tokens of a chunk, which rebalancing needs; None for the whole prompt.
        world_size: Ranks of the group.

    Raises:
        ValueError: If they do not go together.
    """
    if rebalance is False:
        return
    if chunk is None:
        raise ValueError("rebalance needs a chunk: a prompt in one piece is split once")
    if isinstance(rebalance, Rebalancer):
        if partition is not None:
            raise ValueError("a Rebalancer makes the partitions: give either a Rebalancer or a partition")
        if len(rebalance.speeds) != world_size:
            raise ValueError(f"the Rebalancer is of {len(rebalance.speeds)} ranks, the group has {world_size}")
    elif rebalance is not True:
        raise ValueError(f"rebalance is {rebalance!r}: it must be True, False or a Rebalancer")


def rebalancer_of(rebalance: bool | Rebalancer, partition: Partition, device: torch.device) -> Rebalancer | None:
    """The Rebalancer that splits the chunks of a prompt.

    Args:
        rebalance: Whether to rebalance, or a Rebalancer.
        partition: The shares to begin with.
        device: The model's device; on CUDA whole tiles are given out.

    Returns:
        The Rebalancer, or None where chunks keep the shares of `partition`.

    Raises:
        ValueError: If a Rebalancer cannot begin with these shares.
    """
    if isinstance(rebalance, Rebalancer):
        return rebalance
    if not rebalance:
        return None
    if partition.layout != "zigzag" or not all(partition.block_lens):
        raise ValueError(
            f"rebalance begins with a zigzag in which every rank has tokens, not with {partition.layout} "
            f"{partition.block_lens}"
        )
    return Rebalancer(partition.block_lens, multiple=2 * BLOCK_M if device.type == "cuda" else 1)


def split_anew(rebalancer: Rebalancer, tokens: int, chunk: int) -> Iterator[Partition]:
    """Partitions of the chunks of a prompt, each split when it is requested.

    Args:
        rebalancer: Splits them.
        tokens: Tokens of the prompt.
        chunk: Most tokens of a chunk.

    Yields:
        The partition of each chunk.
    """
    while tokens:
        part = rebalancer.partition(min(chunk, tokens))
        yield part
        tokens -= part.seq_len


def grow(cache: RingCache, part: Partition, left: int, new_tokens: int, call: Call) -> None:
    """Make room on every rank for the next chunk.

    If a rank has too little, the caches get room for all tokens that are left, in the shares of this chunk.

    Args:
        cache: This rank's cache.
        part: Partition of the next chunk.
        left: Tokens of the prompt that are left, this chunk's included.
        new_tokens: Tokens of decode that follow.
        call: The call, within its context.
    """
    after = tuple(map(add, cache.held, part.block_lens))
    need = capacities(after, cache.speeds, new_tokens) if part.seq_len == left else after
    if all(tokens <= room for tokens, room in zip(need, cache.capacities, strict=True)):
        return
    rest = apportion(part.block_lens, left - part.seq_len)
    likely = tuple(tokens + more + more // SPARE for tokens, more in zip(after, rest, strict=True))
    room = tuple(map(max, cache.capacities, capacities(likely, cache.speeds, new_tokens)))
    call.agree(lambda: (("part", "more room"),), lambda: make_room(cache, room[cache.rank]), every_call=True)
    cache.capacities = room
