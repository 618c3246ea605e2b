"""Ring attention for decode: keys and values stay where they lie, the one new query goes to all (pass-Q)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from heteroring.kernels.block import Block, check_block
from heteroring.kernels.decode_block import finish, merge_parts, partials
from heteroring.ring.agreement import agree
from heteroring.ring.members import members

# PyTorch 2.13 renamed it, and warns of the old name in every call.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def ring_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    scale: float | None = None,
    *,
    block: str | Block = "auto",
) -> torch.Tensor:
    """Attention of one new query to the keys and values of all ranks. Forward only.

    q [B, Hq, 1, D] is the same on all ranks; k and v [B, Hkv, m_r, D] are the keys and values that this rank holds,
    the query's own among those of just one rank; any m_r may be 0, Hq is a multiple of Hkv. `scale` defaults to
    1/sqrt(D); `block` is a backend name or a Block. Returns out [B, Hq, 1, D] like q, with the same bits on all ranks
    (of one kind of device). A query that sees no key at all gives 0. Every rank of the group must call.

    Each rank attends to what it holds; one collective then brings every rank B x Hq x (D + 1) numbers of each other,
    to be merged by their LSE.

    Raises ValueError if the arguments break a rule above, and on every rank if one rank's do or if the ranks' shapes,
    dtypes or scales differ (on CUDA this is compared once for a call of its kind: see heteroring.ring.agreement);
    RuntimeError if a rank is lost.
    """
    group, rank, world_size = members(group)
    if scale is None:
        scale = 1.0 / math.sqrt(max((1, *q.shape[-1:])))
    problem = _problem(q, k, v, scale, block)
    if world_size > 1:
        agree(() if problem else _description(q, k, scale), problem, group, q.device)
    elif problem:
        raise ValueError(problem)
    with torch.no_grad():
        parts = partials(q, k, v, scale, block)
        if world_size > 1:
            parts = _gather(merge_parts(parts), group, rank, world_size)
        return finish(parts, q.dtype)


def _gather(part: torch.Tensor, group: dist.ProcessGroup, rank: int, world_size: int) -> torch.Tensor:
    parts = part.new_empty((world_size, *part.shape))
    try:
        _all_gather(parts.flatten(0, 1), part, group=group)
    except RuntimeError as error:
        raise RuntimeError(f"rank {rank} lost another where ranks exchange their part of a token: {error}") from error
    return parts


def _problem(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, block: str | Block) -> str | None:
    """The first rule that this rank's own arguments break, in words."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if any(x.dim() != 4 for x in (q, k, v)):
        return f"{shapes}: each must be [B, H, n, D]"
    if q.shape[2] != 1:
        return f"{shapes}: decode takes one query, q has {q.shape[2]}"
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        return f"{shapes}: k and v must have one shape, and q their batch and head dimension"
    if q.shape[0] < 1 or q.shape[3] < 1:
        return f"{shapes}: batch and head dimension must be at least 1"
    if k.shape[1] < 1 or q.shape[1] < 1 or q.shape[1] % k.shape[1]:
        return f"q has {q.shape[1]} heads and k has {k.shape[1]}: the first must be a multiple of the second"
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        return f"q is {q.dtype}, k {k.dtype}, v {v.dtype}: they must be of one floating-point dtype"
    if not q.device == k.device == v.device:
        return f"q is on {q.device}, k on {k.device}, v on {v.device}: they must be on one device"
    if not math.isfinite(scale):
        return f"scale is {scale}: it must be finite"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "an input requires a gradient, and ring_decode is forward only: call it under torch.no_grad()"
    if isinstance(block, str):
        try:
            check_block(block)
        except ValueError as error:
            return str(error)
    return None


def _description(q: torch.Tensor, k: torch.Tensor, scale: float) -> tuple[tuple[str, object], ...]:
    return (
        ("call", "ring_decode"),
        ("dtype", str(q.dtype)),
        ("batch", q.shape[0]),
        ("query heads", q.shape[1]),
        ("KV heads", k.shape[1]),
        ("head dimension", q.shape[-1]),
        ("scale", float(scale)),
    )
