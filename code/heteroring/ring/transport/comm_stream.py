"""The stream and the NCCL communicator for KV messages beside compute, created once per group and device."""

from __future__ import annotations

from functools import cached_property
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

_created: WeakKeyDictionary[dist.ProcessGroup, dict[torch.device, CommStream]] = WeakKeyDictionary()


def comm_stream_of(group: dist.ProcessGroup, device: torch.device) -> CommStream:
    """The comm stream of `group` on the CUDA device `device`."""
    created = _created.setdefault(group, {})
    if device not in created:
        created[device] = CommStream(group, device)
    return created[device]


class CommStream:
    """A stream for copies, and a communicator with its own; both of high priority, so that KV precedes compute."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device, priority=-1)
        self._ranks, self._device = dist.get_process_group_ranks(group), device

    @cached_property
    def communicator(self) -> dist.ProcessGroup:
        """An NCCL group of the same ranks, possibly in another order. All ranks must take part in its first use."""
        return dist.new_group(
            self._ranks,
            backend="nccl",
            pg_options=dist.ProcessGroupNCCL.Options(is_high_priority_stream=True),
            use_local_synchronization=True,
            device_id=self._device,
        )
