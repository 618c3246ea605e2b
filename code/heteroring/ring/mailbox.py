"""Memory of each rank that its peers map and copy from, and the flags that tell them when."""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from heteroring.ring.stream_flags import await_flag, write_flag

_FLAG_BYTES = 4
_ALIGNMENT = 256

_mailboxes: WeakKeyDictionary[dist.ProcessGroup, dict[torch.device, list[Mailbox]]] = WeakKeyDictionary()


def mailbox_of(group: dist.ProcessGroup, device: torch.device, nbytes: int) -> Mailbox:
    """A mailbox of at least `nbytes` for the ranks of `group`, which all ask with the same `nbytes` in the same order.

    Made when there is none that large, at least twice as large as the one before. Outgrown ones are kept: a CUDA
    graph may have been captured with them.
    """
    made = _mailboxes.setdefault(group, {}).setdefault(device, [])
    if not made or made[-1].capacity < nbytes:
        made.append(Mailbox(group, device, max(nbytes, 2 * made[-1].capacity if made else 0)))
    return made[-1]


class Mailbox:
    """`capacity` bytes in symmetric memory on every rank of a group, in front of them a table of flags.

    One message at a time goes from an owner to a reader. The owner writes it to its own memory and announces it;
    the reader awaits that, copies, and acknowledges; the owner awaits the acknowledgement before it writes again.
    Every flag is set by one side and cleared by the other, so that no count is kept that a replayed CUDA graph could
    not keep. All of it is work on a stream: the host never waits.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device, capacity: int) -> None:
        # Copies between two peers need no multicast object, and making one can fail or harm where it is not set up.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        from torch.distributed import _symmetric_memory as symmetric_memory

        self.capacity = capacity
        self._rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)
        table = 2 * self._world_size * _FLAG_BYTES
        first = -(-table // _ALIGNMENT) * _ALIGNMENT
        memory = symmetric_memory.empty(first + capacity, dtype=torch.uint8, device=device)
        memory[:first].zero_()
        torch.cuda.synchronize(device)  # a peer may set a flag as soon as the rendezvous is over
        handle = symmetric_memory.rendezvous(memory, group)
        mapped = [handle.get_buffer(rank, memory.shape, torch.uint8) for rank in range(self._world_size)]
        self._handle = handle  # keeps the mappings alive
        self._flags = [each.data_ptr() for each in mapped]
        self._regions = [each[first:] for each in mapped]

    def region(self, rank: int, first: int, nbytes: int) -> torch.Tensor:
        """Bytes [first, first + nbytes) of the memory of `rank`, mapped here: uint8 [nbytes]."""
        return self._regions[rank][first : first + nbytes]

    def announce(self, reader: int, stream: int) -> None:
        """Tell `reader` that what this rank has for it is there, once `stream` gets so far."""
        write_flag(stream, self._announced(reader, self._rank), 1)

    def await_announcement(self, owner: int, stream: int) -> None:
        """Hold `stream` until `owner` has announced."""
        self._await(stream, self._announced(self._rank, owner))

    def acknowledge(self, owner: int, stream: int) -> None:
        """Tell `owner` that this rank has read, once `stream` gets so far."""
        write_flag(stream, self._acknowledged(owner, self._rank), 1)

    def await_acknowledgement(self, reader: int, stream: int) -> None:
        """Hold `stream` until `reader` has read."""
        self._await(stream, self._acknowledged(self._rank, reader))

    def _await(self, stream: int, flag: int) -> None:
        await_flag(stream, flag, 1)
        write_flag(stream, flag, 0)

    def _announced(self, at: int, owner: int) -> int:
        return self._flags[at] + owner * _FLAG_BYTES

    def _acknowledged(self, at: int, reader: int) -> int:
        return self._flags[at] + (self._world_size + reader) * _FLAG_BYTES
