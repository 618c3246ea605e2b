"""Memory of each rank that its peers write keys and values to, and the flags that tell them when."""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from heteroring.ring.transport.cuda_driver import await_flag, write_flag
from heteroring.ring.transport.messages import SLOTS

_FLAG_BYTES = 4
_ALIGNMENT = 256

_mailboxes: WeakKeyDictionary[dist.ProcessGroup, dict[torch.device, list[Mailbox]]] = WeakKeyDictionary()


def mailbox_of(group: dist.ProcessGroup, device: torch.device, nbytes: int) -> Mailbox:
    """A mailbox with room for messages of `nbytes`, which all ranks of `group` ask for in the same order of sizes.

    Made when there is none that large, at least twice as large as the one before. Outgrown ones are kept: a CUDA
    graph may have been captured with them.
    """
    made = _mailboxes.setdefault(group, {}).setdefault(device, [])
    if not made or made[-1].capacity < nbytes:
        made.append(Mailbox(group, device, max(nbytes, 2 * made[-1].capacity if made else 0)))
    return made[-1]


def mailbox_bytes(group: dist.ProcessGroup, device: torch.device) -> int:
    """Memory of `device` that the mailboxes of `group` take, beside what PyTorch's allocator counts."""
    return sum(mailbox.nbytes for mailbox in _mailboxes.get(group, {}).get(device, []))


class Mailbox:
    """SLOTS slots of `capacity` bytes in symmetric memory on every rank of a group, and a table of flags before them.

    A message goes from its owner into a slot of its reader, in one or more parts. The reader grants the slot; the owner
    awaits that, writes, and announces part after part; the reader awaits the last before it reads, or reads on its
    device what the count says is there. Every flag is set by one side and cleared by the other, so that no count is
    kept which a replayed CUDA graph could not keep. All of it is work on a stream: the host never waits.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device, capacity: int) -> None:
        # Copies between two peers need no multicast object, and making one can fail or harm where it is not set up.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        from torch.distributed import _symmetric_memory as symmetric_memory

        self.capacity = -(-capacity // _ALIGNMENT) * _ALIGNMENT
        self._rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)
        self._first = -(-2 * self._world_size * _FLAG_BYTES // _ALIGNMENT) * _ALIGNMENT
        self._memory = symmetric_memory.empty(self._first + SLOTS * self.capacity, dtype=torch.uint8, device=device)
        self._memory[: self._first].zero_()
        torch.cuda.synchronize(device)  # a peer may set a flag as soon as the rendezvous is over
        handle = symmetric_memory.rendezvous(self._memory, group)
        mapped = [handle.get_buffer(rank, self._memory.shape, torch.uint8) for rank in range(self._world_size)]
        self._addresses = [each.data_ptr() for each in mapped]
        self._mapped = handle, mapped  # as long as these live, so do the mappings
        self._last: torch.cuda.Stream | None = None

    def open(self, current: torch.cuda.Stream) -> None:
        """Begin a call that computes on the stream `current`: behind the last call, wherever that computed."""
        if self._last is not None and self._last != current and not torch.cuda.is_current_stream_capturing():
            current.wait_stream(self._last)

    def close(self, current: torch.cuda.Stream) -> None:
        """End the call: all that it does with slots and flags has been asked for."""
        # On a stream that records a graph, nothing has run that the next call could wait for.
        if not torch.cuda.is_current_stream_capturing():
            self._last = current

    @property
    def nbytes(self) -> int:
        """Memory that it takes on this rank."""
        return self._memory.numel()

    def slot(self, index: int, nbytes: int) -> torch.Tensor:
        """The first `nbytes` of this rank's slot `index`: uint8 [nbytes]."""
        first = self._first + index * self.capacity
        return self._memory[first : first + nbytes]

    def address(self, rank: int, index: int) -> int:
        """Address, in this process, of slot `index` of `rank`."""
        return self._addresses[rank] + self._first + index * self.capacity

    def grant(self, owner: int, stream: int) -> None:
        """Let `owner` write its next message for this rank, once `stream` gets so far."""
        write_flag(stream, self._granted(owner, self._rank), 1)

    def await_grant(self, reader: int, stream: int) -> None:
        """Hold `stream` until this rank may write its next message for `reader`."""
        self._await(stream, self._granted(self._rank, reader), 1)

    def announce(self, reader: int, part: int, stream: int) -> None:
        """Tell `reader` that part `part`, from 1, of this rank's message is there, once `stream` gets so far."""
        write_flag(stream, self._announced(reader, self._rank), part)

    def await_message(self, owner: int, parts: int, stream: int) -> None:
        """Hold `stream` until all `parts` of the message of `owner` are there."""
        self._await(stream, self._announced(self._rank, owner), parts)

    def arrived(self, owner: int) -> int:
        """Address of the count of parts of the message of `owner` that are there, for a kernel to wait for."""
        return self._announced(self._rank, owner)

    def forget_message(self, owner: int, stream: int) -> None:
        """Count the parts of the next message of `owner` from 0, once `stream` is through with this one."""
        write_flag(stream, self.arrived(owner), 0)

    def _await(self, stream: int, flag: int, value: int) -> None:
        await_flag(stream, flag, value)
        write_flag(stream, flag, 0)

    def _granted(self, owner: int, reader: int) -> int:
        return self._addresses[owner] + reader * _FLAG_BYTES

    def _announced(self, reader: int, owner: int) -> int:
        return self._addresses[reader] + (self._world_size + owner) * _FLAG_BYTES
