"""MPS: a rank's process may only use a share of its GPU's multiprocessors."""

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

# Runs in a process of its own: one that has started CUDA without MPS, as the launching one would, stays without it.
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
    """Limits a process, its NCCL kernels among the rest, by CUDA_MPS_ACTIVE_THREAD_PERCENTAGE.

    MPS divides multiprocessors, by whole pairs and rounding down (66, 26 and 12 of 132 at 50, 20 and 10 %), and
    neither memory bandwidth, L2, NVLink nor the copy engines. The share is fixed when the process starts CUDA. The SMs
    that it leaves are not neighbours, as those of a thread block cluster have to be: see `avoid_clusters`.
    """

    name: ClassVar[str] = "mps"
    platforms: ClassVar[tuple[str, ...]] = ("gpu",)

    @classmethod
    @contextmanager
    def session(cls) -> Iterator[Mapping[str, str]]:
        """A daemon for the ranks (see `mps_daemon`), who are told how many multiprocessors GPUs have without it."""
        counts = _whole_devices()
        with mps_daemon() as variables:
            yield {**variables, _WHOLE: " ".join(map(str, counts))}

    def environment(self) -> Mapping[str, str]:
        return {PERCENTAGE: str(self.percentage)}

    def start(self) -> None:
        """Have products computed right, at 100 % too, so that ranks differ in nothing but the SMs they are left."""
        import torch

        from heteroring.kernels.matmul_override import avoid_clusters

        avoid_clusters(torch.device("cuda", torch.cuda.current_device()))

    def report(self) -> dict[str, float]:
        """multiprocessors: as CUDA counts them in this process; expected_multiprocessors: what was asked for."""
        import torch

        device = torch.cuda.current_device()
        answer = {"multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count}
        counts = os.environ.get(_WHOLE, "").split()
        if device < len(counts):
            answer["expected_multiprocessors"] = granted(int(counts[device]), self.percentage)
        return answer


def granted(multiprocessors: int, percentage: int) -> int:
    """Multiprocessors that MPS leaves a process of a GPU's `multiprocessors` at `percentage`."""
    return max(2, multiprocessors * percentage // 100 // 2 * 2)


def _whole_devices() -> list[int]:
    """Multiprocessors of each visible GPU; empty where they cannot be found out."""
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()] if done.returncode == 0 else []
