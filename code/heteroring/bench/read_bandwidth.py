"""Measure a GPU's read bandwidth, which limits decode: it reads weights and KV once for each token."""

from __future__ import annotations

import torch

from heteroring.bench.timing import device_ms

READ_BYTES = 4 << 30  # far more than L2 holds
_REPETITIONS = 20


def read_bandwidth(device: torch.device) -> float:
    """Bytes read per millisecond by sums over READ_BYTES of fp32, one after another."""
    sums = [torch.ones(READ_BYTES // 4, device=device).sum] * _REPETITIONS
    device_ms(sums)  # to reach the clock rate of long work
    return READ_BYTES / device_ms(sums)
