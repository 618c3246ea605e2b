"""Prefix: keys and values of earlier tokens, which all tokens of a call see and which stay where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Prefix:
    """The earlier tokens that this rank holds, and how many of them every rank holds.

    Their positions lie before those of the new tokens, in any order over the ranks. Where the new tokens' keys and
    values follow those of the prefix in memory, as views of one cache do, nothing is copied.

    Args:
        k: Keys [B, Hkv, m_r, D] of this rank, with m_r = lens[rank], which may be 0.
        v: Values [B, Hkv, m_r, D].
        lens: Earlier tokens by rank, each 0 or more; the same on all ranks.
    """

    k: torch.Tensor
    v: torch.Tensor
    lens: tuple[int, ...]


def concatenated(earlier: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`earlier` [B, H, m, D] and behind it `new` [B, H, n, D]: a view where they adjoin in memory, a copy otherwise."""
    if not earlier.shape[2] or not new.shape[2]:
        return earlier if earlier.shape[2] else new
    follows = new.storage_offset() == earlier.storage_offset() + earlier.shape[2] * earlier.stride(2)
    same = new.untyped_storage().data_ptr() == earlier.untyped_storage().data_ptr()
    if same and follows and new.stride() == earlier.stride():
        return earlier.as_strided((*new.shape[:2], earlier.shape[2] + new.shape[2], new.shape[3]), new.stride())
    return torch.cat((earlier, new), 2)
