"""The KV messages of a call: how many keys each rank sends to which rank in which ring step, on every transport."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from heteroring.ring.partition import Partition
from heteroring.ring.schedule import ring_steps
from heteroring.ring.transport.limits import SLOTS


@dataclass(frozen=True)
class Message:
    """The first `keys` keys and values of their owner, which the reader's queries see, sent into slot `slot`."""

    keys: int
    slot: int


@dataclass(frozen=True)
class Messages:
    """One rank's messages of a call, by ring step. A step without a message is absent.

    In step s a rank receives from rank - s and sends to rank + s. Messages come straight from the owner, so that no
    rank relays tokens that it does not use.
    """

    receives: dict[int, Message]
    sends: dict[int, Message]


@lru_cache(maxsize=1024)
def messages(partition: Partition, rank: int, causal: bool, prefix_lens: tuple[int, ...] = ()) -> Messages:
    """The messages of a rank in one call of pass-KV ring attention.

    Args:
        partition: Which new tokens each rank holds.
        rank: The rank, from 0.
        causal: Whether attention is causal.
        prefix_lens: Earlier tokens that each rank holds; () for none.

    Returns:
        What it receives and sends, by ring step.
    """
    world_size = partition.world_size
    sends = {}
    for step in range(1, world_size):
        received = _received(partition, (rank + step) % world_size, causal, prefix_lens)
        if step in received:
            sends[step] = received[step]
    return Messages(_received(partition, rank, causal, prefix_lens), sends)


@lru_cache(maxsize=1024)
def _received(partition: Partition, rank: int, causal: bool, prefix_lens: tuple[int, ...]) -> dict[int, Message]:
    """The messages that `rank` receives. Consecutive messages use alternate slots, whatever their steps."""
    remote = [step for step in ring_steps(partition, rank, causal, prefix_lens) if step.index]
    return {step.index: Message(step.keys, number % SLOTS) for number, step in enumerate(remote)}


class Inbox:
    """Slots for the messages of one call.

    They are one allocation, on the current stream: another stream must wait for it before it writes to them.
    """

    def __init__(self, k: torch.Tensor, received: dict[int, Message]) -> None:
        batch, heads, _, head_dim = k.shape
        self._shape = (2, batch, heads, -1, head_dim)
        self._token = 2 * batch * heads * head_dim
        self._received = received
        width = self._token * max((message.keys for message in received.values()), default=0)
        self._slots = k.new_empty((min(SLOTS, len(received)), width))

    def room(self, step: int) -> torch.Tensor:
        """Where the message of `step` goes: [2, B, Hkv, keys, D], keys first, then values."""
        message = self._received[step]
        return self._slots[message.slot, : self._token * message.keys].view(self._shape)
