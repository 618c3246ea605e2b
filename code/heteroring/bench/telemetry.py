"""Clock rates, power and temperature of GPUs during a job, read through NVML."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from threading import Event, Thread
from typing import Any, NamedTuple

PERIOD_SECONDS = 0.5
_SM_CLOCK, _GPU_SENSOR = 1, 0  # NVML_CLOCK_SM, NVML_TEMPERATURE_GPU
_UUID_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE


class Sample(NamedTuple):
    """One GPU at one time."""

    sm_mhz: float
    power_w: float
    temperature_c: float


class Nvml:
    """The GPUs of this machine. Raises OSError where there is no NVIDIA driver."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint()
        if self._library.nvmlInit_v2() or self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            raise OSError("NVML does not start")
        self._handles = [ctypes.c_void_p() for _ in range(count.value)]
        for index, handle in enumerate(self._handles):
            self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))

    def uuids(self) -> list[str]:
        """The UUIDs of all GPUs, such as "GPU-5c9b..."."""
        texts = [ctypes.create_string_buffer(_UUID_BYTES) for _ in self._handles]
        for handle, text in zip(self._handles, texts, strict=True):
            self._library.nvmlDeviceGetUUID(handle, text, _UUID_BYTES)
        return [text.value.decode() for text in texts]

    def sample(self) -> list[Sample]:
        """A reading of every GPU; 0 for a value that a GPU does not report."""
        return [
            Sample(
                self._read("nvmlDeviceGetClockInfo", handle, _SM_CLOCK),
                self._read("nvmlDeviceGetPowerUsage", handle) / 1e3,
                self._read("nvmlDeviceGetTemperature", handle, _GPU_SENSOR),
            )
            for handle in self._handles
        ]

    def _read(self, function: str, handle: ctypes.c_void_p, *arguments: int) -> int:
        value = ctypes.c_uint()
        failed = getattr(self._library, function)(handle, *arguments, ctypes.byref(value))
        return 0 if failed else value.value


@contextmanager
def telemetry(device_kind: str) -> Iterator[list[dict[str, Any]]]:
    """Yield a list that holds, once the context has ended, a summary for each GPU of this machine during it.

    It stays empty where `device_kind` is not gpu, or the driver gives no readings: no job fails because of that.
    """
    summaries: list[dict[str, Any]] = []
    try:
        nvml = Nvml() if device_kind == "gpu" else None
        samples = [nvml.sample()] if nvml else []
    except (OSError, AttributeError):  # no library, or one that lacks a function
        samples = []
    if not samples:
        yield summaries
        return
    over = Event()

    def watch() -> None:
        while not over.wait(PERIOD_SECONDS):
            samples.append(nvml.sample())

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield summaries
    finally:
        over.set()
        thread.join()
        samples.append(nvml.sample())
        summaries += [summary(uuid, each) for uuid, each in zip(nvml.uuids(), zip(*samples, strict=True), strict=True)]


def summary(uuid: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """The summary of one GPU: its clock in MHz, power in W and temperature in degrees Celsius."""
    clocks, powers, temperatures = zip(*samples, strict=True)
    return {
        "uuid": uuid,
        "samples": len(samples),
        "sm_mhz": {"lowest": min(clocks), "median": median(clocks), "highest": max(clocks)},
        "power_w": {"median": median(powers), "highest": max(powers)},
        "temperature_c": {"before": temperatures[0], "after": temperatures[-1], "highest": max(temperatures)},
    }
