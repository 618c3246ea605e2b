"""Measure a GPU's read bandwidth, which limits decode: it reads weights and KV once for each token."""

from __future__ import annotations

import torch

READ_BYTES = 4 << 30
"""Far more than L2 holds."""
_REPETITIONS = 20


def read_bandwidth(device: torch.device) -> float:
    """Bytes read per millisecond by sums over READ_BYTES of fp32, one after another."""
    data = torch.ones(READ_BYTES // 4, device=device)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(_REPETITIONS):  # at the clock rate of long work
        data.sum()
    start.record()
    for _ in range(_REPETITIONS):
        data.sum()
    stop.record()
    stop.synchronize()
    return READ_BYTES * _REPETITIONS / start.elapsed_time(stop)
