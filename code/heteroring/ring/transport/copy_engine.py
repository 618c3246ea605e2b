"""KV written into the readers' memory by the copy engines, which need no multiprocessor."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.distributed as dist

from heteroring.kernels.pending_kv import Late
from heteroring.ring.partition import Partition
from heteroring.ring.transport.comm_stream import lane_of
from heteroring.ring.transport.contiguous import compact
from heteroring.ring.transport.cuda_driver import copy_rows
from heteroring.ring.transport.messages import SLOTS, Message, messages
from heteroring.ring.transport.symmetric_buffer import mailbox_of

_LONGEST_PITCH = (1 << 31) - 1  # bytes from row to row in one copy of rows
# Of a part of a message, about: each costs as long as it takes to copy some 2 MB.
_PART_BYTES = 8 << 20


class CopyEngine:
    """Each rank writes the keys and values that a peer's queries see straight from its tensors into the peer's slot.

    Copies and their signals run on a side stream, beside compute; the compute stream itself only awaits and clears
    flags. (An engine could as well copy in the other direction, but only out of memory that peers have mapped, and
    putting keys and values there is a kernel or a copy by multiprocessors, which full ones keep waiting.)
    """

    def __init__(
        self, k: torch.Tensor, v: torch.Tensor, partition: Partition, causal: bool, group: dist.ProcessGroup
    ) -> None:
        batch, heads, _, head_dim = k.shape
        self._rank, self.world_size = dist.get_rank(group), partition.world_size
        self._messages = messages(partition, self._rank, causal)
        self._shape, self._heads = (2, batch, heads, -1, head_dim), batch * heads
        self._dtype, self._head_bytes = k.dtype, head_dim * k.element_size()
        self._token_bytes = 2 * batch * heads * self._head_bytes
        self._mailbox = mailbox_of(group, k.device, self._token_bytes * _most_keys(partition, causal))
        self._current = torch.cuda.current_stream(k.device)
        self._mailbox.open(self._current)
        self._sources = tuple(_in_rows(x) for x in (k, v)) if self._messages.sends else ()
        self._lane = lane_of(group, k.device).stream
        self._lane.wait_stream(self._current)

    def start(self, step: int) -> None:
        """Let the owner write this rank's message of `step`, and write the reader's; nothing if there is none."""
        if step in self._messages.receives:
            # On the side stream, for compute need not wait until a peer's memory is written to; but behind the compute
            # that still reads the slot.
            if step > SLOTS:
                self._lane.wait_stream(self._current)
            self._mailbox.grant((self._rank - step) % self.world_size, self._lane.cuda_stream)
        if step in self._messages.sends:
            reader = (self._rank + step) % self.world_size
            message, stream = self._messages.sends[step], self._lane.cuda_stream
            self._mailbox.await_grant(reader, stream)
            target = self._mailbox.address(reader, message.slot)
            width = message.keys * self._head_bytes
            parts, heads = self._parts(message)
            for part in range(parts):
                for i, source in enumerate(self._sources):
                    pitch, first = _pitch(source) if self._heads > 1 else width, part * heads
                    there = target + (i * self._heads + first) * width
                    copy_rows(stream, there, source.data_ptr() + first * pitch, heads, width, pitch)
                self._mailbox.announce(reader, part + 1, stream)

    def wait(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `step`, each [B, Hkv, keys, D] contiguous."""
        parts, _ = self._parts(self._messages.receives[step])
        self._mailbox.await_message((self._rank - step) % self.world_size, parts, self._current.cuda_stream)
        return self._received(step)

    def late(self, step: int, first_query: int) -> Late:
        """Keys and values of `step` before they are there: whoever computes with them waits, and then says `taken`."""
        _, heads = self._parts(self._messages.receives[step])
        arrived = self._mailbox.arrived((self._rank - step) % self.world_size)
        return Late(*self._received(step), first_query, arrived, heads)

    def taken(self, step: int) -> None:
        """What was asked for on the current stream has waited for `late` of `step`: let the next message come."""
        self._mailbox.forget_message((self._rank - step) % self.world_size, self._current.cuda_stream)

    def close(self) -> None:
        """Have the current stream wait until this rank's keys and values have been copied."""
        self._current.wait_stream(self._lane)
        self._mailbox.close(self._current)

    def _received(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        message = self._messages.receives[step]
        received = self._mailbox.slot(message.slot, message.keys * self._token_bytes)
        keys, values = received.view(self._dtype).view(self._shape).unbind(0)
        return keys, values

    def _parts(self, message: Message) -> tuple[int, int]:
        """How many parts `message` is sent in, and the heads of keys, and of values, in each."""
        parts = _divided(message.keys * self._token_bytes, self._heads, _PART_BYTES)
        return parts, self._heads // parts


def _in_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` [B, H, n, D], copied if it must be: the tokens of a head close together, and heads evenly apart."""
    batch, heads, _, head_dim = x.shape
    close = x.stride(2) == head_dim or x.shape[2] == 1
    even = batch == 1 or heads == 1 or x.stride(0) == heads * x.stride(1)
    apart = x.shape[2] * head_dim <= _pitch(x) // x.element_size() or batch * heads == 1
    return x if close and even and apart and _pitch(x) <= _LONGEST_PITCH else compact(x)


@lru_cache(maxsize=1024)
def _divided(nbytes: int, heads: int, part: int) -> int:
    """How many parts of as many heads each come nearest to `part` bytes of `nbytes`."""
    wanted = nbytes / part
    divisors = [parts for parts in range(1, heads + 1) if heads % parts == 0]
    return min(divisors, key=lambda parts: max(parts / wanted, wanted / parts))


def _pitch(x: torch.Tensor) -> int:
    """Bytes from one head's tokens to the next head's."""
    return x.stride(1 if x.shape[1] > 1 else 0) * x.element_size()


@lru_cache(maxsize=1024)
def _most_keys(partition: Partition, causal: bool) -> int:
    """Keys of the longest message of a call, the same on all ranks."""
    everyone = [messages(partition, rank, causal) for rank in range(partition.world_size)]
    return max((message.keys for each in everyone for message in each.receives.values()), default=0)
