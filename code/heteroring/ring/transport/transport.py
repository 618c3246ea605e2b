"""The choice of a KV transport, and the protocol that the ring drives it by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeGuard

import torch
import torch.distributed as dist

from heteroring.kernels.pending_kv import PendingKV
from heteroring.ring.partition import Partition
from heteroring.ring.transport.copy_engine import CopyEngine
from heteroring.ring.transport.limits import SLOTS
from heteroring.ring.transport.p2p import PointToPoint
from heteroring.ring.transport.peer_access import peers_can_be_accessed

AHEAD = SLOTS
"""Ring steps whose KV may be on its way, or in use, at a time."""


class Exchange(Protocol):
    """The KV messages of one call on one rank, step by step."""

    fusable: bool
    """Whether this is a FusableExchange."""

    def start(self, step: int) -> None:
        """Start the messages of `step`, from 1 to world size - 1 in order; nothing if it has none.

        At most AHEAD steps are started before the first is computed, and one more with each step computed.
        """

    def wait(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `step`, each [B, Hkv, keys, D], in place for the work queued next."""

    def close(self) -> None:
        """Complete the messages under way; the caller may then reuse k and v."""


class FusableExchange(Exchange, Protocol):
    """An exchange whose messages a kernel on the device can wait for itself, as the fused first step does."""

    def pending(self, step: int, first_query: int) -> PendingKV:
        """Keys and values of a step, in place of `wait`, for a kernel that waits for them itself.

        Args:
            step: Index of the ring step.
            first_query: The first query that sees them.

        Returns:
            The pending KV.
        """

    def consumed(self, step: int) -> None:
        """Report that the kernel that waits for `pending` of `step` has been queued on the current stream."""


def can_fuse(exchange: Exchange) -> TypeGuard[FusableExchange]:
    """Whether `exchange` is a FusableExchange."""
    return exchange.fusable


def choose_transport(name: str, group: dist.ProcessGroup, device: torch.device) -> str:
    """The transport that a name stands for on a device, the same on every rank.

    All ranks make the first call together; the answer is kept for the group.

    Args:
        name: "auto", "p2p" or "copy-engine".
        group: The process group.
        device: The device on which this rank computes.

    Returns:
        "copy-engine" where every rank's GPU can access every other's and cuda.bindings is installed, unless p2p was
        asked for; else "p2p".
    """
    if name != "p2p" and device.type == "cuda" and peers_can_be_accessed(group, device):
        return "copy-engine"
    return "p2p"


def open_exchange(
    name: str,
    k: torch.Tensor,
    v: torch.Tensor,
    partition: Partition,
    causal: bool,
    group: dist.ProcessGroup,
    prefix_lens: tuple[int, ...] = (),
) -> Exchange:
    """Begin the messages of one call.

    Args:
        name: "p2p" or "copy-engine".
        k: This rank's keys [B, Hkv, m_r + n_r, D], beginning with those of its prefix.
        v: The values of the same tokens.
        partition: Which new tokens each rank holds.
        causal: Whether attention is causal.
        group: The process group.
        prefix_lens: Earlier tokens that each rank holds; () for none.

    Returns:
        The exchange.
    """
    kind = CopyEngine if choose_transport(name, group, k.device) == "copy-engine" else PointToPoint
    return _watcher.get()(kind(k, v, partition, causal, group, prefix_lens))


_watcher: ContextVar[Callable[[Exchange], Exchange]] = ContextVar("watcher", default=lambda exchange: exchange)


@contextmanager
def watched(watcher: Callable[[Exchange], Exchange]) -> Iterator[None]:
    """Wrap every exchange opened within the context by `watcher(exchange)`, which can record waits."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
