"""KV pulled out of the owner's memory by the copy engines, which need no multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.distributed as dist

from heteroring.ring.lane import lane_of
from heteroring.ring.mailbox import mailbox_of
from heteroring.ring.messages import Inbox, messages
from heteroring.ring.partition import Partition


class CopyEngine:
    """Each rank lays its keys and values out in symmetric memory; those whose queries see them copy them from there.

    Publishing, pulling and signalling run on a high-priority stream beside compute.
    """

    def __init__(
        self, k: torch.Tensor, v: torch.Tensor, partition: Partition, causal: bool, group: dist.ProcessGroup
    ) -> None:
        batch, heads, _, head_dim = k.shape
        token_bytes = 2 * batch * heads * head_dim * k.element_size()
        self._k, self._v = k, v
        self._rank, self.world_size = dist.get_rank(group), partition.world_size
        self._messages = messages(partition, self._rank, causal)
        self._places = _places(partition, causal, token_bytes)
        self._lane = lane_of(group, k.device)
        self._mailbox = mailbox_of(group, k.device, self._places.nbytes)
        self._inbox = Inbox(k, self._messages)
        self._arrived: dict[int, torch.cuda.Event] = {}
        self._publish()

    def start(self, step: int) -> None:
        """Pull the KV of `step`, a ring step from 1 to world size - 1; nothing if it has none."""
        if step not in self._messages.receives:
            return
        owner = (self._rank - step) % self.world_size
        room = self._inbox.room(step)
        first = self._places.first[owner, self._messages.receives[step]]
        with self._lane.after_current() as stream:
            self._mailbox.await_announcement(owner, stream.cuda_stream)
            room.view(-1).view(torch.uint8).copy_(self._mailbox.region(owner, first, room.nbytes))
            self._mailbox.acknowledge(owner, stream.cuda_stream)
            self._arrived[step] = stream.record_event()

    def wait(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `step`, each [B, Hkv, keys, D] contiguous."""
        torch.cuda.current_stream(self._k.device).wait_event(self._arrived.pop(step))
        keys, values = self._inbox.room(step).unbind(0)
        return keys, values

    def close(self) -> None:
        """Have the current stream wait until all KV that is under way, in or out, has been copied."""
        stream = self._lane.stream
        for step in self._messages.sends:
            self._mailbox.await_acknowledgement((self._rank + step) % self.world_size, stream.cuda_stream)
        torch.cuda.current_stream(self._k.device).wait_stream(stream)

    def _publish(self) -> None:
        with self._lane.after_current() as stream:
            for keys in dict.fromkeys(self._messages.sends.values()):
                first = self._places.first[self._rank, keys]
                shape = (2, *self._k.shape[:2], keys, self._k.shape[3])
                nbytes = 2 * self._k[:, :, :keys].numel() * self._k.element_size()
                message = self._mailbox.region(self._rank, first, nbytes).view(self._k.dtype).view(shape)
                message[0].copy_(self._k[:, :, :keys])
                message[1].copy_(self._v[:, :, :keys])
            for step in self._messages.sends:
                self._mailbox.announce((self._rank + step) % self.world_size, stream.cuda_stream)


@dataclass(frozen=True)
class _Places:
    """first[owner, keys]: where in its mailbox a rank puts the message of that many keys; nbytes: room for the most."""

    first: dict[tuple[int, int], int]
    nbytes: int


@lru_cache(maxsize=1024)
def _places(partition: Partition, causal: bool, token_bytes: int) -> _Places:
    """The same on every rank, which is how each knows where its peers' messages lie."""
    first, most = {}, 0
    for owner in range(partition.world_size):
        used = 0
        for keys in dict.fromkeys(messages(partition, owner, causal).sends.values()):
            first[owner, keys] = used
            used += keys * token_bytes
        most = max(most, used)
    return _Places(first, most)
