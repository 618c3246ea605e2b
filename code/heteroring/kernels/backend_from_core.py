"""Make a backend for any causal offset from a kernel that computes only dense rectangles and causal squares."""

from __future__ import annotations

from collections.abc import Callable

import torch

from heteroring.kernels.merge import merge_

Pair = tuple[torch.Tensor, torch.Tensor]
Core = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, bool], Pair]


def backend_from_core(core: Core) -> Callable[..., Pair]:
    """A Backend (see heteroring.kernels.backend) from `core(q, k, v, scale, causal) -> (out, lse)`.

    `core` is only called with at least one query and one key, and with as many queries as keys if `causal`, because
    libraries disagree on the corner to which a rectangular causal mask is aligned.
    """

    def backend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float,
        causal_offset: int | None = None,
        running: Pair | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Pair:
        if running is None and q.numel() and k.numel() and _is_one_call(q, k, causal_offset):
            out, lse = core(q, k, v, scale, causal_offset is not None)
            return out.to(out_dtype or q.dtype), lse
        out, lse = running or empty_running(q)
        for rows, keys, causal in _pieces(q.shape[2], k.shape[2], causal_offset):
            part_out, part_lse = core(q[:, :, rows], k[:, :, keys], v[:, :, keys], scale, causal)
            merge_(out[:, :, rows], lse[:, :, rows], part_out, part_lse)
        return (out, lse) if running else (out.to(out_dtype or q.dtype), lse)

    return backend


def empty_running(q: torch.Tensor) -> Pair:
    """The result of attending to nothing: out 0 and lse -inf, in fp32 (fp64 for fp64 queries)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return torch.zeros(q.shape, dtype=dtype, device=q.device), torch.full(
        q.shape[:-1], -torch.inf, dtype=dtype, device=q.device
    )


def _is_one_call(q: torch.Tensor, k: torch.Tensor, causal_offset: int | None) -> bool:
    return causal_offset is None or (causal_offset == 0 and q.shape[2] == k.shape[2])


def _pieces(m: int, n: int, causal_offset: int | None) -> list[tuple[slice, slice, bool]]:
    """(rows, keys, causal) of the non-empty pieces; causal pieces are square, and cover the diagonal."""
    if causal_offset is None:
        pieces = [(slice(0, m), slice(0, n), False)]
    else:
        first = min(max(0, -causal_offset), m)
        last = max(first, min(m, n - causal_offset))
        before = first + causal_offset
        pieces = [
            (slice(first, last), slice(0, before), False),
            (slice(first, last), slice(before, before + last - first), True),
            (slice(last, m), slice(0, n), False),
        ]
    return [piece for piece in pieces if all(part.stop > part.start for part in piece[:2])]
