"""Busy time: how long a rank computes in ring attention, without its waits for other ranks."""

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

    It computes by the backend that it is given. CUDA events measure the GPU's time, and no call makes the host wait. A
    kernel that waits for pending KV would count its wait, so the first ring step is not fused.

    Args:
        block: Name of a backend, "auto" for the fastest one, or a `heteroring.kernels.backend.Backend`.
    """

    def __init__(self, block: str | Backend = "auto") -> None:
        self._backend = block
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []
        self._device = torch.device("cpu")

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
        """One backend call, timed; as `heteroring.kernels.backend.Backend` says."""
        compute = resolve(self._backend, q.device, q.dtype, q.shape[-1])
        self.start(q.device)
        result = compute(q, k, v, **options)
        self.stop()
        return result

    def start(self, device: torch.device) -> None:
        """Count the work queued from here to `stop` as busy time, too. No backend may be called in between.

        Args:
            device: The device to which the work is given.
        """
        self._device, self._begun = device, _now(device)

    def stop(self) -> None:
        """End the busy time that `start` began."""
        self._spans.append((self._begun, _now(self._device)))

    def of_all_ranks(self, group: dist.ProcessGroup | None = None) -> tuple[float, ...]:
        """Seconds that each rank of a group was busy since the last call of this method.

        Every rank of the group must call. Each sends 8 bytes. The host waits until its device is done with the counted
        work, but not with work that was queued later.

        Args:
            group: The process group. None stands for all processes, or for a single rank where torch.distributed is
                not initialized.

        Returns:
            Seconds by rank; 0 for a rank that computed nothing.

        Raises:
            RuntimeError: If a rank is lost.
        """
        spans, self._spans = self._spans, []
        mine = sum(_seconds(*span) for span in spans)
        group, _, world_size = members(group)
        if group is None or world_size == 1:
            return (mine,)
        return tuple(_DOUBLE.unpack(each)[0] for each in all_bytes(_DOUBLE.pack(mine), group, self._device))


def _now(device: torch.device) -> Any:
    """The time at which all work queued on `device` so far is done: a CUDA event, or on the CPU seconds."""
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
