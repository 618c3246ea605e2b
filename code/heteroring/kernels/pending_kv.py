"""The type PendingKV: keys and values that may still be on their way when the kernel that needs them starts."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PendingKV(NamedTuple):
    """Further keys and values, all of which the queries from `first_query` on see.

    k, v [B, Hkv, n, D]. `arrived` is the address, on their device, of a 32-bit counter that starts at 0 and increases
    by one whenever keys and values of the next `heads` of the B * Hkv heads, in the order of memory, have arrived.
    `heads` divides B * Hkv. A kernel that waits for the counter keeps its SMs, so whatever raises the counter must not
    need them.
    """

    k: torch.Tensor
    v: torch.Tensor
    first_query: int
    arrived: int
    heads: int
