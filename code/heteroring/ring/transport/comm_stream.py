"""What a group's KV travels on beside compute, made once for each group and device."""

from __future__ import annotations

from functools import cached_property
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

_lanes: WeakKeyDictionary[dist.ProcessGroup, dict[torch.device, Lane]] = WeakKeyDictionary()


def lane_of(group: dist.ProcessGroup, device: torch.device) -> Lane:
    """The lane of `group` on the CUDA device `device`."""
    lanes = _lanes.setdefault(group, {})
    if device not in lanes:
        lanes[device] = Lane(group, device)
    return lanes[device]


class Lane:
    """A side stream, and a communicator with one: of high priority, so that KV goes before compute."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device, priority=-1)
        self._ranks, self._device = dist.get_process_group_ranks(group), device

    @cached_property
    def communicator(self) -> dist.ProcessGroup:
        """A group of the same ranks, in whatever order, for NCCL. All ranks must be at its first use."""
        return dist.new_group(
            self._ranks,
            backend="nccl",
            pg_options=dist.ProcessGroupNCCL.Options(is_high_priority_stream=True),
            use_local_synchronization=True,
            device_id=self._device,
        )
