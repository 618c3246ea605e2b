"""Ring attention for decode: keys and values stay where they lie, the one new query goes to all (pass-Q)."""

from __future__ import annotations

import torch
import torch.distributed as dist

from heteroring.kernels.block import Block
from heteroring.kernels.decode_block import finish, merge_parts, partials
from heteroring.ring.consistency import Call, Fields
from heteroring.ring.validation import described, operands, shapes_of

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

    q, k and v may have any strides: what has no contiguous last dimension, or rows that overlap, is copied first.

    Raises ValueError if the arguments break a rule above, and on every rank if one rank's do, if its attention to its
    own keys fails, if the ranks' shapes, dtypes or scales differ, if they call different verbs, or from threads of
    different names (on CUDA this is compared once for a call of its kind, or always with HETERORING_COMPARE=every in
    the environment of all ranks: `Call.agree` in heteroring.ring.consistency); RuntimeError if a rank is lost, or if an
    earlier call over the group ended half way.
    """
    with Call("ring_decode", group, q) as call:

        def describe() -> Fields:
            nonlocal q, k, v, scale
            q, k, v, scale = operands(q, k, v, scale, block, "ring_decode")
            if q.shape[2] != 1:
                raise ValueError(f"{shapes_of(q, k, v)}: decode takes one query, q has {q.shape[2]}")
            return described(q, k, scale)

        def own() -> torch.Tensor:
            assert scale is not None  # since `describe` was called
            with torch.no_grad(), torch.cuda.device(q.device if q.is_cuda else -1):
                parts = partials(q, k, v, scale, block)
                return parts if call.world_size == 1 else merge_parts(parts)

        parts = call.agree(describe, own)
        with torch.no_grad(), torch.cuda.device(q.device if q.is_cuda else -1):
            if call.world_size > 1:
                parts = _gather(parts, call.group, call.rank, call.world_size)
            call.complete()
            return finish(parts, q.dtype)


def _gather(part: torch.Tensor, group: dist.ProcessGroup, rank: int, world_size: int) -> torch.Tensor:
    parts = part.new_empty((world_size, *part.shape))
    try:
        _all_gather(parts.flatten(0, 1), part, group=group)
    except RuntimeError as error:
        raise RuntimeError(f"rank {rank} lost another where ranks exchange their part of a token: {error}") from error
    return parts
