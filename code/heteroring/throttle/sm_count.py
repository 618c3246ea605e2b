"""Count the SMs that the kernels of a stream run on, by a kernel whose programs record their SM."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

_PROGRAMS = 64  # per SM, so that every SM gets some
_MOST = 1024  # SMs of a device


@triton.jit
def _mark(used):
    """Set used[i] to 1, where i is the SM that this program runs on."""
    tl.store(used + cuda.smid(), 1)


def sms_in_use(stream: torch.cuda.Stream) -> int:
    """The number of SMs that kernels on `stream` run on. The host waits for the kernel that counts them."""
    whole = torch.cuda.get_device_properties(stream.device).multi_processor_count
    with torch.cuda.stream(stream):
        used = torch.zeros(_MOST, dtype=torch.int32, device=stream.device)
        _mark[(_PROGRAMS * whole,)](used)
        return int(used.count_nonzero())
