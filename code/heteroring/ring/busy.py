"""How long a rank computes in ring attention, without what it waits for the other ranks."""

from __future__ import annotations

import struct
import time
from typing import Any

import torch
import torch.distributed as dist

from heteroring.kernels.backend import Backend, resolve
from heteroring.ring.process_group import all_bytes, members

_DOUBLE = struct.Struct("<d")


class BusyTime:
    """Counts the time in calls of the backend: give it to `heteroring.ring_attention` as its `block`.

    It computes by the backend that it is given. By CUDA events, it counts the time of the GPU, and no such call
    makes the host wait. A kernel that waits for pending KV would count what it waits for, so the first ring step is
    not fused.

    Args:
        block: Name of a backend, "auto" for the fastest one, or a `heteroring.kernels.backend.Backend`.
    """

    def __init__(self, block: str | Backend = "auto") -> None:
        self._block = block
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []
        self._device = torch.device("cpu")

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
        """One backend call, timed; as `heteroring.kernels.backend.Backend` says."""
        compute = resolve(self._block, q.device, q.dtype, q.shape[-1])
        self.start(q.device)
        result = compute(q, k, v, **options)
        self.stop()
        return result

    def start(self, device: torch.device) -> None:
        """Count what `device` is given from here to `stop` as busy time. No backend may be called between the two."""
        self._device, self._begun = device, _now(device)

    def stop(self) -> None:
        """End what `start` began."""
        self._spans.append((self._begun, _now(self._device)))

    def of_all_ranks(self, group: dist.ProcessGroup | None = None) -> tuple[float, ...]:
        """Seconds that each rank of `group` was busy since this was asked last; 0 where it computed nothing.

        Every rank of the group must call. Each sends 8 bytes. The host waits until its device is done with what was
        counted, but not with what it was given since.

        Raises RuntimeError if a rank is lost.
        """
        spans, self._spans = self._spans, []
        mine = sum(_seconds(*span) for span in spans)
        group, _, world_size = members(group)
        if group is None or world_size == 1:
            return (mine,)
        return tuple(_DOUBLE.unpack(each)[0] for each in all_bytes(_DOUBLE.pack(mine), group, self._device))


def _now(device: torch.device) -> Any:
    """The point in time at which all work that `device` was given is done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(begun: Any, ended: Any) -> float:
    if not isinstance(ended, torch.cuda.Event):
        return ended - begun
    ended.synchronize()
    return begun.elapsed_time(ended) / 1e3
