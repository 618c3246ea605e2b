"""How many multiprocessors a stream's kernels really run on, found by asking a kernel's programs where they are."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

_PROGRAMS = 64  # per multiprocessor: enough that each gets some
_MOST = 1024  # multiprocessors of a device


@triton.jit
def _mark(used):
    """Set used[i] to 1, i being the multiprocessor that this program runs on."""
    tl.store(used + cuda.smid(), 1)


def multiprocessors_in_use(stream: torch.cuda.Stream) -> int:
    """Multiprocessors that kernels on `stream` are given. The host waits for the kernel that finds out."""
    whole = torch.cuda.get_device_properties(stream.device).multi_processor_count
    with torch.cuda.stream(stream):
        used = torch.zeros(_MOST, dtype=torch.int32, device=stream.device)
        _mark[(_PROGRAMS * whole,)](used)
        return int(used.count_nonzero())
