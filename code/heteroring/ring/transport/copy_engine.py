"""The copy-engine transport: KV written into the readers' memory by the GPU's copy engines, which need no SMs."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from heteroring.kernels.pending_kv import PendingKV
from heteroring.ring.partition import Partition
from heteroring.ring.transport.comm_stream import comm_stream_of
from heteroring.ring.transport.contiguous_copy import contiguous_copy
from heteroring.ring.transport.cuda_driver import row_copy
from heteroring.ring.transport.limits import PART_BYTES, SLOTS
from heteroring.ring.transport.messages import Message, messages
from heteroring.ring.transport.symmetric_buffer import SymmetricBuffer, buffer_of

_LONGEST_PITCH = (1 << 31) - 1  # bytes from row to row in one copy of rows
# Cached views of the messages in a buffer's slots: the host makes a view more slowly than it looks one up.
_views: WeakKeyDictionary[SymmetricBuffer, dict[Hashable, tuple[torch.Tensor, torch.Tensor]]] = WeakKeyDictionary()
_MOST_VIEWS = 1024


class CopyEngine:
    """Each rank writes the keys and values that a peer's queries see straight from its tensors into the peer's slot.

    Copies and their signals run on the comm stream, beside compute; the compute stream itself only awaits and clears
    flags. Copying in the other direction would need keys and values in memory that peers have mapped, and putting
    them there takes SMs, which are busy (docs/experiments/ring.md).
    """

    fusable = True

    def __init__(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        partition: Partition,
        causal: bool,
        group: dist.ProcessGroup,
        prefix_lens: tuple[int, ...] = (),
    ) -> None:
        batch, heads, _, head_dim = k.shape
        self._rank, self.world_size = dist.get_rank(group), partition.world_size
        self._messages = messages(partition, self._rank, causal, prefix_lens)
        self._shape, self._heads = (2, batch, heads, -1, head_dim), batch * heads
        self._dtype, self._head_bytes = k.dtype, head_dim * k.element_size()
        self._token_bytes = 2 * batch * heads * self._head_bytes
        most_bytes = self._token_bytes * _most_keys(partition, causal, prefix_lens)
        self._buffer = buffer_of(SymmetricBuffer, group, k.device, most_bytes)
        self._current = torch.cuda.current_stream(k.device)
        self._buffer.open(self._current)
        self._sources = tuple(_in_rows(x) for x in (k, v)) if self._messages.sends else ()
        self._comm_stream = comm_stream_of(group, k.device).stream
        self._comm_stream.wait_stream(self._current)

    def start(self, step: int) -> None:
        """Give the owner credit for this rank's message of `step`, and write the reader's; nothing if it has none."""
        if step in self._messages.receives:
            # On the comm stream, so that compute need not wait for a write to a peer's memory; but behind the compute
            # that still reads the slot.
            if step > SLOTS:
                self._comm_stream.wait_stream(self._current)
            self._buffer.give_credit((self._rank - step) % self.world_size, self._comm_stream.cuda_stream)
        if step in self._messages.sends:
            reader = (self._rank + step) % self.world_size
            message, stream = self._messages.sends[step], self._comm_stream.cuda_stream
            self._buffer.await_credit(reader, stream)
            width = message.keys * self._head_bytes
            parts, heads = self._parts(message)
            pitches = [_pitch(source) if self._heads > 1 else width for source in self._sources]
            copies = [row_copy(heads, width, pitch) for pitch in pitches]
            here = [source.data_ptr() for source in self._sources]
            there = self._buffer.address(reader, message.slot)
            for part in range(parts):
                first = part * heads
                for i, (copy, address, pitch) in enumerate(zip(copies, here, pitches, strict=True)):
                    copy(stream, there + (i * self._heads + first) * width, address + first * pitch)
                self._buffer.signal(reader, part + 1, stream)

    def wait(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `step`, each [B, Hkv, keys, D] contiguous."""
        parts, _ = self._parts(self._messages.receives[step])
        self._buffer.await_signal((self._rank - step) % self.world_size, parts, self._current.cuda_stream)
        return self._received(step)

    def pending(self, step: int, first_query: int) -> PendingKV:
        """Keys and values of `step` before they have arrived: the kernel that reads them waits for them itself."""
        _, heads = self._parts(self._messages.receives[step])
        arrived = self._buffer.arrived((self._rank - step) % self.world_size)
        return PendingKV(*self._received(step), first_query, arrived, heads)

    def consumed(self, step: int) -> None:
        """Reset the signal of `step`, behind the kernel on the current stream that has waited for its pending KV."""
        self._buffer.reset_signal((self._rank - step) % self.world_size, self._current.cuda_stream)

    def close(self) -> None:
        """Have the current stream wait until this rank's keys and values have been copied."""
        self._current.wait_stream(self._comm_stream)
        self._buffer.close(self._current)

    def _received(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        message = self._messages.receives[step]
        views = _views.get(self._buffer) or _views.setdefault(self._buffer, {})
        key = message, self._dtype, self._shape
        if key not in views:
            if len(views) >= _MOST_VIEWS:
                views.clear()
            received = self._buffer.slot(message.slot, message.keys * self._token_bytes)
            keys, values = received.view(self._dtype).view(self._shape).unbind(0)
            views[key] = keys, values
        return views[key]

    def _parts(self, message: Message) -> tuple[int, int]:
        """The number of parts that `message` is sent in, and the heads of keys, and of values, in each part."""
        parts = _divided(message.keys * self._token_bytes, self._heads, PART_BYTES)
        return parts, self._heads // parts


def _in_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` [B, H, n, D], copied if it must be so that the tokens of a head adjoin and heads are evenly spaced."""
    batch, heads, _, head_dim = x.shape
    close = x.stride(2) == head_dim or x.shape[2] == 1
    even = batch == 1 or heads == 1 or x.stride(0) == heads * x.stride(1)
    apart = x.shape[2] * head_dim <= _pitch(x) // x.element_size() or batch * heads == 1
    return x if close and even and apart and _pitch(x) <= _LONGEST_PITCH else contiguous_copy(x)


@lru_cache(maxsize=1024)
def _divided(nbytes: int, heads: int, part: int) -> int:
    """The number of parts, of equally many heads each, whose size comes nearest to `part` bytes of `nbytes`."""
    wanted = nbytes / part
    divisors = [parts for parts in range(1, heads + 1) if heads % parts == 0]
    return min(divisors, key=lambda parts: max(parts / wanted, wanted / parts))


def _pitch(x: torch.Tensor) -> int:
    """Bytes from one head's tokens to the next head's."""
    return x.stride(1 if x.shape[1] > 1 else 0) * x.element_size()


@lru_cache(maxsize=1024)
def _most_keys(partition: Partition, causal: bool, prefix_lens: tuple[int, ...]) -> int:
    """Keys in the longest message of a call, over all ranks."""
    everyone = [messages(partition, rank, causal, prefix_lens) for rank in range(partition.world_size)]
    return max((message.keys for each in everyone for message in each.receives.values()), default=0)
