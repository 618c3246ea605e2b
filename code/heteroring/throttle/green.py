"""Green contexts: wrapped functions run on a share of the GPU's multiprocessors, which can change between calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from heteroring.throttle.base import Throttle, check_percentage


class Green(Throttle):
    """Runs wrapped functions on a stream of a CUDA green context, in this process and without a daemon.

    CUDA divides multiprocessors in steps of 8 on Hopper (2 to 8 elsewhere) and rounds up: 66 of 132 become 72. What
    is not wrapped, NCCL's kernels for one, runs on the whole GPU; memory bandwidth, L2 and NVLink are not divided.
    """

    name: ClassVar[str] = "green"
    platforms: ClassVar[tuple[str, ...]] = ("gpu",)

    def __init__(self, percentage: int) -> None:
        super().__init__(percentage)
        self._contexts: dict[int, Any] = {}
        self._stream: Any = None
        self._used: int | None = None

    def start(self) -> None:
        """Take effect at the percentage in force. Raises ValueError where CUDA or PyTorch has no green contexts."""
        self.set(self.percentage)

    def set(self, percentage: int) -> None:
        """Run what is called from here on at `percentage`. The host waits once for each percentage that is new."""
        import torch

        self.percentage = check_percentage(percentage)
        if percentage == 100:
            self._stream, self._used = None, None
            return
        if percentage not in self._contexts:
            self._contexts[percentage] = _open(torch.cuda.current_device(), percentage)
        _, self._stream, self._used = self._contexts[percentage]

    def wrap(self, function: Callable) -> Callable:
        @wraps(function)
        def throttled(*args, **kwargs):
            if self._stream is None:
                return function(*args, **kwargs)
            import torch

            # Each stream waits for the other, so memory that either frees is not reused too early.
            outer = torch.cuda.current_stream()
            self._stream.wait_stream(outer)
            with torch.cuda.stream(self._stream):
                result = function(*args, **kwargs)
            outer.wait_stream(self._stream)
            return result

        return throttled

    def report(self) -> dict[str, float]:
        """multiprocessors: those that kernels were seen to run on; expected_multiprocessors: what was asked for."""
        import torch

        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
        return {
            "multiprocessors": whole if self._used is None else self._used,
            "expected_multiprocessors": requested(whole, self.percentage),
        }


def requested(multiprocessors: int, percentage: int) -> int:
    """Multiprocessors to ask CUDA for, of a GPU's `multiprocessors` at `percentage`."""
    return max(1, round(multiprocessors * percentage / 100))


def _open(device: int, percentage: int) -> tuple[Any, Any, int]:
    """A green context, a stream of it, and the multiprocessors that it really has."""
    import torch
    from torch.cuda.green_contexts import GreenContext

    from heteroring.throttle.multiprocessors import multiprocessors_in_use

    whole = torch.cuda.get_device_properties(device).multi_processor_count
    torch.cuda.synchronize(device)  # CUDA must have started on the device
    try:
        context = GreenContext.create(num_sms=requested(whole, percentage), device_id=device)
        stream = context.Stream()
    except RuntimeError as error:
        raise ValueError(
            f"throttle 'green' at {percentage} %: no green context of {requested(whole, percentage)} of {whole} "
            f"multiprocessors can be made here: {error}"
        ) from error
    return context, stream, multiprocessors_in_use(stream)
