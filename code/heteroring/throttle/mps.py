"""The throttle `mps`: a rank's process may use only some of its GPU's SMs, by NVIDIA's Multi-Process Service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from heteroring.throttle.base import Throttle
from heteroring.throttle.mps_daemon import mps_daemon

PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
_WHOLE = "HETERORING_MULTIPROCESSORS"

# Runs in a process of its own: a process that has started CUDA without MPS, as the launcher would, stays without it.
_COUNT = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
devices, count = ctypes.c_int(), ctypes.c_int()
if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(devices)):
    raise SystemExit(1)
for device in range(devices.value):
    cuda.cuDeviceGetAttribute(ctypes.byref(count), 16, device)  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    print(count.value)
"""


class Mps(Throttle):
    """Limits a whole process, including its NCCL kernels, by CUDA_MPS_ACTIVE_THREAD_PERCENTAGE.

    MPS divides SMs, in whole pairs and rounding down (66, 26 and 12 of 132 at 50, 20 and 10 %), but not memory
    bandwidth, L2, NVLink or the copy engines. The share is fixed when the process starts CUDA. The remaining SMs are
    not neighbours, as those of a thread block cluster must be (`avoid_clusters`).
    """

    name: ClassVar[str] = "mps"
    device_kinds: ClassVar[tuple[str, ...]] = ("gpu",)

    @classmethod
    @contextmanager
    def session(cls) -> Iterator[Mapping[str, str]]:
        """Run a daemon for the ranks (`mps_daemon`), and tell them how many SMs the GPUs have without it."""
        counts = _whole_devices()
        with mps_daemon() as variables:
            yield {**variables, _WHOLE: " ".join(map(str, counts))}

    def environment(self) -> Mapping[str, str]:
        """The variable by which MPS limits this process."""
        return {PERCENTAGE: str(self.percentage)}

    def start(self) -> None:
        """Replace cuBLAS's products, which can be wrong under MPS; at 100 % too, so that ranks differ in SMs alone."""
        import torch

        from heteroring.kernels.matmul_override import avoid_clusters

        avoid_clusters(torch.device("cuda", torch.cuda.current_device()))

    def report(self) -> dict[str, float]:
        """multiprocessors: SMs that CUDA counts in this process; expected_multiprocessors: what MPS should leave."""
        import torch

        device = torch.cuda.current_device()
        answer = {"multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count}
        counts = os.environ.get(_WHOLE, "").split()
        if device < len(counts):
            answer["expected_multiprocessors"] = expected_sms(int(counts[device]), self.percentage)
        return answer


def expected_sms(sms: int, percentage: int) -> int:
    """SMs that MPS leaves a process at `percentage`, on a GPU of `sms` SMs."""
    return max(2, sms * percentage // 100 // 2 * 2)


def _whole_devices() -> list[int]:
    """SMs of each visible GPU; empty where they cannot be counted."""
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()] if done.returncode == 0 else []
