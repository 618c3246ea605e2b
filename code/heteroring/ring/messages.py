"""Who sends how many keys to whom, and when; the same on every transport."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from heteroring.ring.partition import Partition
from heteroring.ring.schedule import visits


@dataclass(frozen=True)
class Messages:
    """One rank's messages of a call: keys by ring step. A step without a message is absent.

    In step s a rank receives from rank - s and sends to rank + s, straight from the owner, so that no rank relays
    tokens it does not use. A message holds the first `keys` keys and values of its sender, those that the
    receiver's queries see, and nothing else.
    """

    receives: dict[int, int]
    sends: dict[int, int]


@lru_cache(maxsize=1024)
def messages(partition: Partition, rank: int, causal: bool) -> Messages:
    """The messages of `rank` in one call of pass-KV ring attention."""
    receives = {visit.step: visit.keys for visit in visits(partition, rank, causal) if visit.step}
    sends = {
        visit.step: visit.keys
        for peer in range(partition.world_size)
        for visit in visits(partition, peer, causal)
        if visit.step and visit.kv_rank == rank
    }
    return Messages(receives, sends)


class Inbox:
    """Room for the messages of two steps: one that is read while the next one arrives.

    Allocated in one piece, on the current stream: what writes to it on another must wait for that first.
    """

    def __init__(self, k: torch.Tensor, received: Messages) -> None:
        batch, heads, _, head_dim = k.shape
        self._shape = (2, batch, heads, -1, head_dim)
        self._token = 2 * batch * heads * head_dim
        self._keys = received.receives
        # Slots alternate from one received message to the next, whatever steps those are.
        self._slot = {step: index % 2 for index, step in enumerate(sorted(received.receives))}
        width = self._token * max(received.receives.values(), default=0)
        self._slots = k.new_empty((min(2, len(received.receives)), width))

    def room(self, step: int) -> torch.Tensor:
        """Where the message of `step` goes: [2, B, Hkv, keys, D], keys first, then values."""
        flat = self._slots[self._slot[step], : self._token * self._keys[step]]
        return flat.view(self._shape)
