"""The device kinds that ranks run on, `cpu` and `gpu`: their process-group backend, clock and alignment of ranks."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Protocol

import torch
import torch.distributed as dist

from heteroring.procfs import cpu_model
from heteroring.words import choices

DEVICE_TYPES = {"cpu": "cpu", "gpu": "cuda"}
DEVICE_KINDS = tuple(DEVICE_TYPES)
LOOPBACK_SECONDS = 5.0
# A GPU rests after a call for as long as the call took, but no longer than this. Attention on a whole GPU reaches the
# power limit, which would lower the clock rate of the next call: identical calls of 25 ms differed by 8 % on two H200s,
# and by 1 % after such a rest (docs/experiments/ring.md).
LONGEST_REST_MS = 50.0


class Device(Protocol):
    """One rank's device and its clock. A mark is a point in the device's own time."""

    backend: str
    """The backend of torch.distributed."""

    def check(self, ranks: int) -> None:
        """Raise ValueError if this machine has too few devices for `ranks` ranks."""

    def start(self, local_rank: int) -> torch.device:
        """Make this process compute on the device of `local_rank` alone."""

    def align(self, calls: int = 1) -> None:
        """Make the devices of the default group's ranks start the work queued next, `calls` calls, at the same time."""

    def meet(self) -> None:
        """Make the hosts of the default group's ranks continue at the same time, with no work left on their devices."""

    def mark(self) -> Any:
        """The point in time at which all work queued so far is done."""

    def synchronize(self) -> None:
        """Wait until all work queued so far is done."""

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        """Milliseconds between two marks that all work has passed."""

    def rest(self, busy_ms: float) -> None:
        """Wait until the device, having computed for `busy_ms`, has recovered its clock rate."""

    def uuid(self) -> str:
        """The device's unique identifier, or an empty string where it has none."""

    def describe(self) -> tuple[str, int]:
        """Name, and the number of SMs that this process can use (0 where there are none)."""


def open_device(device_kind: str) -> Device:
    """The device of a kind. Raises ValueError if it is not one of DEVICE_KINDS."""
    if device_kind not in DEVICE_KINDS:
        raise ValueError(
            f"platform: device kind {device_kind!r} cannot be measured here: "
            f"choose {choices(device_kind, DEVICE_KINDS)}"
        )
    return Cpu() if device_kind == "cpu" else Cuda()


def check_loopback() -> None:
    """Raise ValueError unless processes of this machine can connect: without a loopback interface they would hang."""
    try:
        with socket.create_server(("", 0)) as server:
            socket.create_connection(("localhost", server.getsockname()[1]), timeout=LOOPBACK_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"ranks cannot meet on this machine: localhost cannot be reached ({error.strerror or error}); "
            "`ip link set lo up` starts the loopback interface"
        ) from error


class Cpu:
    """One thread of this machine's processor."""

    backend = "gloo"

    def check(self, ranks: int) -> None:
        """Any number of ranks can share a processor."""

    def start(self, local_rank: int) -> torch.device:
        """Limit this process to one thread."""
        torch.set_num_threads(1)
        return torch.device("cpu")

    def align(self, calls: int = 1) -> None:
        """Wait for the other ranks."""
        dist.barrier()

    def meet(self) -> None:
        """Wait for the other ranks."""
        dist.barrier()

    def mark(self) -> int:
        """The time in nanoseconds."""
        return time.perf_counter_ns()

    def synchronize(self) -> None:
        """Nothing to wait for: work on the CPU is done when its call returns."""

    def elapsed_ms(self, start: int, stop: int) -> float:
        """Milliseconds between two marks."""
        return (stop - start) / 1e6

    def rest(self, busy_ms: float) -> None:
        """Nothing to wait for: one thread does not lower the clock rate of the next call."""

    def uuid(self) -> str:
        """Empty: a processor has no identifier."""
        return ""

    def describe(self) -> tuple[str, int]:
        """The processor's name, and 0 SMs."""
        return cpu_model(), 0


class Cuda:
    """One GPU per rank, timed by events on its current stream.

    The host runs ahead of the device, as in a language model whose layers follow one another, so that times are those
    of the device and not of Python's launches.
    """

    backend = "nccl"
    # Clock cycles, some 2 per nanosecond: longer than the host takes to launch a ring, and one operator.
    ring_cycles = 8_000_000
    call_cycles = 400_000

    def check(self, ranks: int) -> None:
        """Raise ValueError if there are fewer GPUs than ranks."""
        if (found := torch.cuda.device_count()) < ranks:
            raise ValueError(
                f"platform: device kind 'gpu' needs a CUDA GPU for each rank, {ranks}, and this machine has {found}"
            )

    def start(self, local_rank: int) -> torch.device:
        """Make this process compute on the GPU of `local_rank`."""
        # NVLink multicast does not help two ranks, and disturbs the host's other GPUs where it is not set up.
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        index = min(local_rank, torch.cuda.device_count() - 1)  # Slurm may show a task its own GPU alone
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def align(self, calls: int = 1) -> None:
        """Let the GPUs sleep, and then start the work queued meanwhile at the same time."""
        # The barrier aligns the hosts. The sleep gives them time to queue work, and the collective after it aligns the
        # devices.
        dist.barrier()
        torch.cuda._sleep(self.ring_cycles + calls * self.call_cycles)
        dist.all_reduce(torch.zeros(1, device="cuda"))

    def meet(self) -> None:
        """Wait for the hosts of the other ranks, and then for this GPU."""
        dist.barrier()
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    def elapsed_ms(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        """Milliseconds between two events that have passed."""
        return start.elapsed_time(stop)

    def rest(self, busy_ms: float) -> None:
        """Sleep for as long as the GPU computed, at most LONGEST_REST_MS."""
        time.sleep(min(busy_ms, LONGEST_REST_MS) / 1e3)

    def uuid(self) -> str:
        """The GPU's identifier, as nvidia-smi prints it; empty where PyTorch does not know it."""
        uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", "")
        return f"GPU-{uuid}" if uuid else ""  # as nvidia-smi writes it

    def describe(self) -> tuple[str, int]:
        """The GPU's name, and the SMs that this process can use."""
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return properties.name, properties.multi_processor_count
