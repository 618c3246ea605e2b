"""The throttle `green`: wrapped functions run on some of the GPU's SMs by CUDA green contexts."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from heteroring.throttle.base import Throttle, check_percentage


class Green(Throttle):
    """Runs wrapped functions on a stream of a CUDA green context, in this process and without a daemon.

    CUDA divides SMs in steps of 8 on Hopper (2 to 8 elsewhere) and rounds up: 66 of 132 become 72. What is not wrapped,
    such as NCCL's kernels, runs on the whole GPU; memory bandwidth, L2 and NVLink are not divided. The share can change
    between calls (`set`).
    """

    name: ClassVar[str] = "green"
    device_kinds: ClassVar[tuple[str, ...]] = ("gpu",)
    can_change: ClassVar[bool] = True

    def __init__(self, percentage: int) -> None:
        super().__init__(percentage)
        self._contexts: dict[int, Any] = {}
        self._stream: Any = None
        self._used: int | None = None

    def start(self) -> None:
        """Take effect in this process. Raises ValueError where CUDA or PyTorch has no green contexts."""
        self.set(self.percentage)

    def set(self, percentage: int) -> None:
        """Run later calls at `percentage`. The host waits for the GPU once per percentage that was not used before."""
        import torch

        self.percentage = check_percentage(percentage)
        if percentage == 100:
            self._stream, self._used = None, None
            return
        if percentage not in self._contexts:
            self._contexts[percentage] = _open(torch.cuda.current_device(), percentage)
        _, self._stream, self._used = self._contexts[percentage]

    def wrap(self, function: Callable) -> Callable:
        """Wrap a function so that it runs on the green context's stream."""

        @wraps(function)
        def throttled(*args, **kwargs):
            if self._stream is None:
                return function(*args, **kwargs)
            import torch

            # Each stream waits for the other, so that memory freed by one is not reused too early by the other.
            outer = torch.cuda.current_stream()
            self._stream.wait_stream(outer)
            with torch.cuda.stream(self._stream):
                result = function(*args, **kwargs)
            outer.wait_stream(self._stream)
            return result

        return throttled

    def report(self) -> dict[str, float]:
        """multiprocessors: SMs that kernels were seen to run on; expected_multiprocessors: SMs that were requested."""
        import torch

        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
        return {
            "multiprocessors": whole if self._used is None else self._used,
            "expected_multiprocessors": requested_sms(whole, self.percentage),
        }


def requested_sms(sms: int, percentage: int) -> int:
    """SMs to request from CUDA at `percentage`, on a GPU of `sms` SMs."""
    return max(1, round(sms * percentage / 100))


def _open(device: int, percentage: int) -> tuple[Any, Any, int]:
    """A green context, a stream of it, and the number of SMs that it actually has."""
    import torch
    from torch.cuda.green_contexts import GreenContext

    from heteroring.throttle.sm_count import sms_in_use

    whole = torch.cuda.get_device_properties(device).multi_processor_count
    torch.cuda.synchronize(device)  # CUDA must have started on the device
    try:
        context = GreenContext.create(num_sms=requested_sms(whole, percentage), device_id=device)
        stream = context.Stream()
    except RuntimeError as error:
        raise ValueError(
            f"throttle 'green' at {percentage} %: a green context of {requested_sms(whole, percentage)} of {whole} SMs "
            f"cannot be created here: {error}"
        ) from error
    return context, stream, sms_in_use(stream)
