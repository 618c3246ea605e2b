"""Keys and values that may still be on their way when the block that needs them starts."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Late(NamedTuple):
    """What the queries from `first_query` on see in full besides their block's own keys.

    k, v [B, Hkv, n, D]. `arrived` is the address, on their device, of a 32-bit counter that starts at 0 and goes up by
    one whenever the next `heads` of the B * Hkv heads, in the order of memory, are there, keys and values. `heads`
    divides B * Hkv. A kernel that waits for the counter holds the multiprocessors that it runs on: what raises the
    counter must not need any of them.
    """

    k: torch.Tensor
    v: torch.Tensor
    first_query: int
    arrived: int
    heads: int
