"""The side stream on which a group's KV travels, made once for each group and device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    """A high-priority CUDA stream: what is ready to be sent goes before compute that fills the device."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device, priority=-1)
        self._ranks = dist.get_process_group_ranks(group)
        self._device = device
        self._communicator: dist.ProcessGroup | None = None

    @contextmanager
    def after_current(self) -> Iterator[torch.cuda.Stream]:
        """Run what is asked for inside on the lane, once the current stream has done all it was asked for so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            yield self.stream

    def communicator(self) -> dist.ProcessGroup:
        """A group of the same ranks, in the same order, whose NCCL kernels have high priority too.

        Made on first use, at which all ranks of the group must be.
        """
        if self._communicator is None:
            options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
            self._communicator = dist.new_group(
                self._ranks,
                backend="nccl",
                pg_options=options,
                use_local_synchronization=True,
                device_id=self._device,
            )
        return self._communicator
