"""CUDA driver calls that PyTorch does not offer: flags in memory that a stream sets or awaits, and copies of rows.

Neither runs a kernel. A kernel that waited for a peer, or copied for it, would need a free SM, and a compute kernel
that fills the device frees its SMs only at its end. The calls go through NVIDIA's own bindings, the package
cuda-bindings, which PyTorch's builds for CUDA require.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType


class DriverError(RuntimeError):
    """The CUDA driver refused a call."""


def is_installed() -> bool:
    """Whether cuda-bindings can be imported; builds of PyTorch for the CPU come without it."""
    try:
        _driver()
    except ImportError:
        return False
    return True


def write_flag(stream: int, address: int, value: int) -> None:
    """Have a CUDA stream store a value in memory, after its earlier work.

    Args:
        stream: Handle of the stream.
        address: Where to store, also in a peer's memory that is mapped here.
        value: The value, of 32 bits.

    Raises:
        DriverError: If the driver refuses.
    """
    _check("cuStreamWriteValue32", _driver().cuStreamWriteValue32(stream, address, value, 0))


def await_flag(stream: int, address: int, value: int) -> None:
    """Hold a CUDA stream until a place in memory has a value.

    Args:
        stream: Handle of the stream.
        address: Where to look, in local memory.
        value: The value, of 32 bits.

    Raises:
        DriverError: If the driver refuses.
    """
    equal = _driver().CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_EQ
    _check("cuStreamWaitValue32", _driver().cuStreamWaitValue32(stream, address, value, equal))


def row_copy(rows: int, width: int, pitch: int) -> Callable[[int, int, int], None]:
    """A function that has a stream copy rows that are apart to where they adjoin.

    Describing a copy takes the host as long as queuing it, so copies that differ only in addresses share a description.

    Args:
        rows: Number of rows.
        width: Bytes of a row.
        pitch: Bytes from one row to the next at the source.

    Returns:
        A function of (stream, target, source), addresses that may lie in a peer's memory. It raises DriverError.
    """
    driver = _driver()
    copy = driver.CUDA_MEMCPY2D()
    copy.srcMemoryType = copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.srcPitch, copy.dstPitch, copy.WidthInBytes, copy.Height = pitch, width, width, rows

    def queue(stream: int, target: int, source: int) -> None:
        copy.srcDevice, copy.dstDevice = source, target
        _check("cuMemcpy2DAsync", driver.cuMemcpy2DAsync(copy, stream))

    return queue


def _check(name: str, result: tuple) -> None:
    if result[0]:
        raise DriverError(f"{name} failed with CUDA driver error {int(result[0])}")


@cache
def _driver() -> ModuleType:
    from cuda.bindings import driver

    return driver
