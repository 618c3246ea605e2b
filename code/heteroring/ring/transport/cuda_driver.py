"""CUDA driver calls that PyTorch does not offer: flags in memory that a stream sets or awaits, and copies of rows.

Neither runs a kernel. One that waited for a peer, or copied for it, would need room on a multiprocessor, and a compute
kernel that fills the device leaves it that only at its end.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

_WAIT_UNTIL_EQUAL = 1  # CU_STREAM_WAIT_VALUE_EQ
_DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE


class DriverError(RuntimeError):
    """The CUDA driver refused a call."""


_SIDE = (
    ("x", ctypes.c_size_t),
    ("y", ctypes.c_size_t),
    ("type", ctypes.c_int),
    ("host", ctypes.c_void_p),
    ("device", ctypes.c_uint64),
    ("array", ctypes.c_void_p),
    ("pitch", ctypes.c_size_t),
)


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D of cuda.h."""

    _fields_ = (
        *[(f"src_{name}", kind) for name, kind in _SIDE],
        *[(f"dst_{name}", kind) for name, kind in _SIDE],
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


def write_flag(stream: int, address: int, value: int) -> None:
    """Have the CUDA stream with handle `stream` store the 32-bit `value` at `address`, behind its earlier work.

    `address` may lie in a peer's memory that is mapped here. Raises DriverError.
    """
    _call("cuStreamWriteValue32_v2", stream, address, value, 0)


def await_flag(stream: int, address: int, value: int) -> None:
    """Hold the CUDA stream with handle `stream` until `address`, in local memory, holds `value`. Raises DriverError."""
    _call("cuStreamWaitValue32_v2", stream, address, value, _WAIT_UNTIL_EQUAL)


def copy_rows(stream: int, target: int, source: int, rows: int, width: int, pitch: int) -> None:
    """Have `stream` copy `rows` rows of `width` bytes, `pitch` apart at `source`, to lie close together at `target`.

    Either may be a peer's memory. Raises DriverError.
    """
    copy = _Copy2D(
        src_type=_DEVICE_MEMORY,
        src_device=source,
        src_pitch=pitch,
        dst_type=_DEVICE_MEMORY,
        dst_device=target,
        dst_pitch=width,
        width=width,
        height=rows,
    )
    _check("cuMemcpy2DAsync_v2", _function("cuMemcpy2DAsync_v2")(ctypes.byref(copy), ctypes.c_void_p(stream)))


def _call(name: str, stream: int, address: int, value: int, flags: int) -> None:
    code = _function(name)(
        ctypes.c_void_p(stream), ctypes.c_uint64(address), ctypes.c_uint32(value), ctypes.c_uint(flags)
    )
    _check(name, code)


def _check(name: str, code: int) -> None:
    if code:
        raise DriverError(f"{name} failed with CUDA driver error {code}")


@cache
def _function(name: str) -> Any:
    return getattr(ctypes.CDLL("libcuda.so.1"), name)
