"""Flags in device memory that a CUDA stream sets or waits for without running a kernel.

A kernel that waits for a peer would need room on a multiprocessor, which a compute kernel that fills the device
leaves it only at its end. The driver's stream memory operations need none.
"""

from __future__ import annotations

import ctypes
from functools import cache

_WAIT_UNTIL_EQUAL = 1  # CU_STREAM_WAIT_VALUE_EQ


class DriverError(RuntimeError):
    """The CUDA driver refused a call."""


def write_flag(stream: int, address: int, value: int) -> None:
    """Have the CUDA stream with handle `stream` store the 32-bit `value` at `address`, behind its earlier work.

    `address` may lie in a peer's memory that is mapped here. Raises DriverError.
    """
    _call("cuStreamWriteValue32_v2", stream, address, value, 0)


def await_flag(stream: int, address: int, value: int) -> None:
    """Hold the CUDA stream with handle `stream` until `address`, in local memory, holds `value`. Raises DriverError."""
    _call("cuStreamWaitValue32_v2", stream, address, value, _WAIT_UNTIL_EQUAL)


def _call(name: str, stream: int, address: int, value: int, flags: int) -> None:
    code = _driver_function(name)(stream, address, value, flags)
    if code:
        raise DriverError(f"{name} failed with CUDA driver error {code}")


@cache
def _driver_function(name: str):
    function = getattr(ctypes.CDLL("libcuda.so.1"), name)
    function.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function
