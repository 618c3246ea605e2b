"""Prefix: keys and values of earlier tokens, which all tokens of a call see and which stay where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from heteroring.arguments import prefix_lengths


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


def check_prefix(prefix: Any, k: torch.Tensor, rank: int, world_size: int) -> tuple[int, ...]:
    """The prefix lengths by rank, () where all are 0 or there is no prefix.

    Raises ValueError if `prefix` is not one, or does not fit its lengths, the group, or the new tokens' keys `k`.
    """
    if prefix is None:
        return ()
    if not isinstance(prefix, Prefix):
        raise ValueError(f"prefix is {prefix!r}: it must be a Prefix, or None")
    lens = prefix_lengths("prefix.lens", prefix.lens, world_size)
    held = lens[rank] if lens else 0
    for name, x in (("prefix.k", prefix.k), ("prefix.v", prefix.v)):
        if not isinstance(x, torch.Tensor) or x.layout != torch.strided or x.is_nested:
            raise ValueError(f"{name} is of type {type(x).__name__}: it must be a dense tensor [B, Hkv, m_r, D]")
        expected = (*k.shape[:2], held, k.shape[3])
        if tuple(x.shape) != expected:
            raise ValueError(
                f"{name} is of shape {tuple(x.shape)}: rank {rank} of prefix.lens {prefix.lens} needs {expected}"
            )
        if x.dtype != k.dtype or x.device != k.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, k {k.dtype} on {k.device}: they must be alike")
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"{name} requires a gradient, and ring_attention is forward only")
    return lens


def joined(earlier: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`earlier` [B, H, m, D] and behind it `new` [B, H, n, D]: a view where they adjoin in memory, a copy otherwise."""
    if not earlier.shape[2] or not new.shape[2]:
        return earlier if earlier.shape[2] else new
    follows = new.storage_offset() == earlier.storage_offset() + earlier.shape[2] * earlier.stride(2)
    same = new.untyped_storage().data_ptr() == earlier.untyped_storage().data_ptr()
    if same and follows and new.stride() == earlier.stride():
        return earlier.as_strided((*new.shape[:2], earlier.shape[2] + new.shape[2], new.shape[3]), new.stride())
    return torch.cat((earlier, new), 2)
