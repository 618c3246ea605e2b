"""How fast a GPU reads its memory: what limits decode, which reads weights and KV once for each token."""

from __future__ import annotations

from statistics import median

import torch

READ_BYTES = 4 << 30
"""Far more than L2 holds."""
_WARMUP, _REPETITIONS = 2, 5


def read_bandwidth(device: torch.device) -> float:
    """Bytes per millisecond: the faster of two reductions of READ_BYTES, each the median of its repetitions."""
    data = torch.ones(READ_BYTES // 2, device=device, dtype=torch.bfloat16)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    fastest = 0.0
    for reduce in (torch.sum, torch.amax):
        times = []
        for _ in range(_WARMUP + _REPETITIONS):
            start.record()
            reduce(data)
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
        fastest = max(fastest, READ_BYTES / median(times[_WARMUP:]))
    return fastest
