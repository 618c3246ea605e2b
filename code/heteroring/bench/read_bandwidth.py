"""How fast a GPU reads its memory: what limits decode, which reads weights and KV once for each token."""

from __future__ import annotations

import torch

READ_BYTES = 4 << 30
"""Far more than L2 holds."""
_REPETITIONS = 20


def read_bandwidth(device: torch.device) -> float:
    """Bytes per millisecond in which sums of READ_BYTES in fp32, one behind the other, read them."""
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
