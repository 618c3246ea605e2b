"""The devices that ranks run on: which process group they use, and whose clock times them."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

import torch
import torch.distributed as dist

from heteroring.launch.procfs import cpu_model
from heteroring.launch.rest import LONGEST_REST_MS

DEVICE_TYPES = {"cpu": "cpu", "gpu": "cuda"}
PLATFORMS = tuple(DEVICE_TYPES)


class Device(Protocol):
    """One rank's device, with its clock: a mark is a point in the device's own time."""

    backend: str
    """Of torch.distributed."""

    def check(self, ranks: int, least: int = 2) -> None:
        """Raise ValueError if this machine has too few devices for `ranks` ranks, or fewer GPUs than `least`."""

    def start(self, local_rank: int) -> torch.device:
        """Make this process compute on the device of `local_rank`, and on nothing else."""

    def align(self, calls: int = 1) -> None:
        """Have the ranks of the default group begin what they are asked for next, `calls` calls, at the same time."""

    def meet(self) -> None:
        """Have the hosts of the default group's ranks go on at the same time, with nothing asked of their devices."""

    def mark(self) -> Any:
        """The point in time at which everything asked for so far is done."""

    def synchronize(self) -> None:
        """Wait until every mark has been passed."""

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        """Milliseconds between two marks that have been passed."""

    def rest(self, busy_ms: float) -> None:
        """Hold the host until the device, having computed for `busy_ms`, is as it was before."""

    def uuid(self) -> str:
        """What tells this device from all others; nothing where there is no such thing."""

    def describe(self) -> tuple[str, int]:
        """Name, and multiprocessors that this process can use (0 where there is no such thing)."""


def open_device(platform: str) -> Device:
    """The device kind of a live platform. Raises ValueError if it is not one of PLATFORMS."""
    if platform not in PLATFORMS:
        raise ValueError(f"platform {platform!r} cannot be measured here: choose one of {', '.join(PLATFORMS)}")
    return Cpu() if platform == "cpu" else Cuda()


class Cpu:
    """One thread of this machine's processor."""

    backend = "gloo"

    def check(self, ranks: int, least: int = 2) -> None:
        """Any number of ranks can share a processor."""

    def start(self, local_rank: int) -> torch.device:
        torch.set_num_threads(1)
        return torch.device("cpu")

    def align(self, calls: int = 1) -> None:
        dist.barrier()

    def meet(self) -> None:
        dist.barrier()

    def mark(self) -> int:
        return time.perf_counter_ns()

    def synchronize(self) -> None:
        """CPU work is done when its call returns."""

    def elapsed_ms(self, start: int, stop: int) -> float:
        return (stop - start) / 1e6

    def rest(self, busy_ms: float) -> None:
        """One thread does not slow the next call down."""

    def uuid(self) -> str:
        return ""

    def describe(self) -> tuple[str, int]:
        return cpu_model(), 0


class Cuda:
    """One GPU a rank, timed by events on its current stream.

    The host runs ahead, as it does in a model whose layers follow one another: what is timed is the device, and not
    how fast Python asks it for work.
    """

    backend = "nccl"
    # Of a multiprocessor, 2 to a nanosecond: longer than the host takes to ask for a ring, and for one operator.
    ring_cycles = 8_000_000
    call_cycles = 400_000

    def check(self, ranks: int, least: int = 2) -> None:
        needed, found = max(least, ranks), torch.cuda.device_count()
        if found < needed:
            raise ValueError(f"platform 'gpu' needs {needed} CUDA GPUs or more, this machine has {found}")

    def start(self, local_rank: int) -> torch.device:
        # NVLink multicast is of no use to two ranks, and harms the host's other GPUs where it is not set up.
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        index = min(local_rank, torch.cuda.device_count() - 1)  # Slurm may show a task its own GPU alone
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def align(self, calls: int = 1) -> None:
        # The barrier brings the hosts together, and a collective on the device what they ask for meanwhile.
        dist.barrier()
        torch.cuda._sleep(self.ring_cycles + calls * self.call_cycles)
        dist.all_reduce(torch.zeros(1, device="cuda"))

    def meet(self) -> None:
        dist.barrier()
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def elapsed_ms(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        return start.elapsed_time(stop)

    def rest(self, busy_ms: float) -> None:
        time.sleep(min(busy_ms, LONGEST_REST_MS) / 1e3)

    def uuid(self) -> str:
        uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", "")
        return f"GPU-{uuid}" if uuid else ""  # as nvidia-smi writes it

    def describe(self) -> tuple[str, int]:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return properties.name, properties.multi_processor_count
