"""Symmetric buffers: memory on each rank that peers write to, with slots and flags for KV, or words for parts."""

from __future__ import annotations

import os
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from heteroring.ring.transport.cuda_driver import await_flag, write_flag
from heteroring.ring.transport.limits import SLOTS

_FLAG_BYTES = 4
_ALIGNMENT = 256

_buffers: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[type, torch.device], list[Any]]] = WeakKeyDictionary()
_Buffer = TypeVar("_Buffer", bound="SymmetricMemory")


def buffer_of(kind: type[_Buffer], group: dist.ProcessGroup, device: torch.device, capacity: int) -> _Buffer:
    """A buffer of a kind for a group; all ranks ask for the same kinds and capacities in turn.

    Where no existing one is large enough, one of at least twice the last one's capacity is allocated. Outgrown ones are
    kept, because a CUDA graph may have been captured with them.

    Args:
        kind: The class of the buffer.
        group: The process group.
        device: This rank's GPU.
        capacity: What the buffer must hold, in the unit of `kind`.

    Returns:
        The buffer.
    """
    made = _buffers.setdefault(group, {}).setdefault((kind, device), [])
    if not made or made[-1].capacity < capacity:
        made.append(kind(group, device, max(capacity, 2 * made[-1].capacity if made else 0)))
    return made[-1]


def symmetric_buffer_bytes(group: dist.ProcessGroup, device: torch.device) -> int:
    """Bytes on `device` that the symmetric buffers of `group` take, which PyTorch's allocator does not count."""
    made = _buffers.get(group, {}).items()
    return sum(buffer.nbytes for (_, where), buffers in made if where == device for buffer in buffers)


class SymmetricMemory:
    """`nbytes` of zeros on every rank of a group, which all ranks can write to; calls that use it never overlap."""

    capacity: int

    def __init__(self, group: dist.ProcessGroup, device: torch.device, nbytes: int) -> None:
        # Peers need no multicast object, and creating one can fail or do harm where it is not set up.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        from torch.distributed import _symmetric_memory as symmetric_memory

        self.rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)
        self._memory = symmetric_memory.empty(nbytes, dtype=torch.uint8, device=device).zero_()
        torch.cuda.synchronize(device)  # a peer may write as soon as the rendezvous is over
        handle = symmetric_memory.rendezvous(self._memory, group)
        mapped = [handle.get_buffer(rank, self._memory.shape, torch.uint8) for rank in range(self._world_size)]
        self._addresses = [each.data_ptr() for each in mapped]
        self._mapped = handle, mapped  # keep the mappings alive
        self._last: torch.cuda.Stream | None = None

    def open(self, current: torch.cuda.Stream) -> None:
        """Begin a call that computes on the stream `current`: behind the last call, on whichever stream that was."""
        if self._last is not None and self._last != current and not torch.cuda.is_current_stream_capturing():
            current.wait_stream(self._last)

    def close(self, current: torch.cuda.Stream) -> None:
        """End the call, all of whose work on the memory has been queued."""
        # While a graph is recorded nothing runs, so there is nothing for the next call to wait for.
        if not torch.cuda.is_current_stream_capturing():
            self._last = current

    @property
    def nbytes(self) -> int:
        """Bytes that the memory takes on this rank."""
        return self._memory.numel()


class SymmetricBuffer(SymmetricMemory):
    """A table of flags and SLOTS slots of `capacity` bytes, in symmetric memory on every rank of a group.

    The owner of a message writes it into a slot of the reader, in one or more parts. The reader gives credit for the
    slot; the owner awaits the credit, writes, and signals the number of parts written after each part. The reader
    awaits the signal of the last part, or its kernel polls the signal and reads parts as they arrive. Each flag
    is set by one side and cleared by the other; there are no running counts, which a replayed CUDA graph could not
    keep. All of this is work on a stream: the host never waits.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device, capacity: int) -> None:
        self.capacity = -(-capacity // _ALIGNMENT) * _ALIGNMENT
        self._first = -(-2 * dist.get_world_size(group) * _FLAG_BYTES // _ALIGNMENT) * _ALIGNMENT
        super().__init__(group, device, self._first + SLOTS * self.capacity)

    def slot(self, index: int, nbytes: int) -> torch.Tensor:
        """The first `nbytes` of this rank's slot `index`: uint8 [nbytes]."""
        first = self._first + index * self.capacity
        return self._memory[first : first + nbytes]

    def address(self, rank: int, index: int) -> int:
        """Address of slot `index` of `rank`, as mapped into this process."""
        return self._addresses[rank] + self._first + index * self.capacity

    def give_credit(self, owner: int, stream: int) -> None:
        """Allow `owner` to write its next message for this rank, once the earlier work on `stream` is done."""
        write_flag(stream, self._credit(owner, self.rank), 1)

    def await_credit(self, reader: int, stream: int) -> None:
        """Hold `stream` until this rank has credit to write its next message for `reader`; use the credit up."""
        self._await_and_clear(stream, self._credit(self.rank, reader), 1)

    def signal(self, reader: int, parts: int, stream: int) -> None:
        """Signal `reader` that `parts` parts of its message have arrived, once earlier work on `stream` is done."""
        write_flag(stream, self._signal(reader, self.rank), parts)

    def await_signal(self, owner: int, parts: int, stream: int) -> None:
        """Hold `stream` until all `parts` parts of the message of `owner` are there; reset the signal."""
        self._await_and_clear(stream, self._signal(self.rank, owner), parts)

    def arrived(self, owner: int) -> int:
        """Address of the number of parts of the message of `owner` that are there, for a kernel to wait for."""
        return self._signal(self.rank, owner)

    def reset_signal(self, owner: int, stream: int) -> None:
        """Set the number of parts from `owner` back to 0, once earlier work on `stream` is done."""
        write_flag(stream, self.arrived(owner), 0)

    def _await_and_clear(self, stream: int, flag: int, value: int) -> None:
        await_flag(stream, flag, value)
        write_flag(stream, flag, 0)

    def _credit(self, owner: int, reader: int) -> int:
        return self._addresses[owner] + reader * _FLAG_BYTES

    def _signal(self, reader: int, owner: int) -> int:
        return self._addresses[reader] + (self._world_size + owner) * _FLAG_BYTES
