"""Ring attention for decode (pass-Q): keys and values stay on their rank, the new query is on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from heteroring.kernels.backend import Backend
from heteroring.kernels.decode_partials import merge_partials, merge_to_output, partials
from heteroring.ring.consistency import Call, Fields
from heteroring.ring.transport.partials_buffer import partials_buffer_of
from heteroring.ring.validation import check_cached, check_single_query, described, operands

# PyTorch 2.13 renamed it and warns about the old name in every call.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def ring_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    scale: float | None = None,
    *,
    block: str | Backend = "auto",
    cached: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one new query to the keys and values of all ranks. Forward only.

    Every rank of the group must call. Each rank attends to the keys that it holds; then B x Hq x (D + 1) numbers per
    rank are exchanged, which every rank merges by their LSE: written by each rank into the others' memory where their
    GPUs can reach each other, else by one collective.

    q, k and v may have any strides. A tensor is copied first if its last dimension is not contiguous or its rows
    overlap, and on CUDA also if its rows do not begin at multiples of 16 bytes.

    On CUDA the ranks compare their arguments once per kind of call (`Call.agree` in heteroring.ring.consistency), or in
    every call if HETERORING_COMPARE=every is set for all ranks.

    Args:
        q: The query [B, Hq, 1, D], the same on all ranks.
        k: The keys [B, Hkv, m_r, D] that this rank holds; Hq is a multiple of Hkv, and m_r may be 0. The query's own
            key is among those of exactly one rank.
        v: The values [B, Hkv, m_r, D] that this rank holds.
        group: The process group. None stands for all processes, or for a single rank where torch.distributed is not
            initialized.
        scale: Factor on the scores; None stands for 1/sqrt(D).
        block: Name of a backend, "auto" for the fastest one, or a `heteroring.kernels.backend.Backend`.
        cached: An integer tensor of one element on the device of k, at most m_r: the number of keys that this rank
            holds, from the first on, for a cache that grows while a CUDA graph is replayed. None stands for m_r.

    Returns:
        out [B, Hq, 1, D] in the dtype of q, bitwise equal on all ranks with the same kind of device; 0 where no rank
        holds a key.

    Raises:
        ValueError: On every rank, if an argument of any rank breaks a rule above, or its attention to its own keys
            fails, or if the ranks' shapes, dtypes or scales differ, or if the ranks call different verbs, or from
            threads of different names.
        RuntimeError: If a rank is lost and ranks exchange by a collective, or if an earlier call over the group ended
            half way. Writing into the others' memory has no time-out: the device then waits for the lost rank until
            this process is ended, which torchrun and `heteroring` do when one of their ranks is lost.
    """
    with Call("ring_decode", group, q) as call:

        def describe() -> Fields:
            nonlocal q, k, v, scale
            q, k, v, scale = operands(q, k, v, scale, block, "ring_decode")
            check_single_query(q, k, v)
            if cached is not None:
                check_cached(cached, k)
            return described(q, k, scale)

        def own() -> torch.Tensor:
            assert scale is not None  # since `describe` was called
            with torch.no_grad(), torch.cuda.device(q.device if q.is_cuda else -1):
                return partials(q, k, v, scale, block, cached)

        parts = call.agree(describe, own)
        with torch.no_grad(), torch.cuda.device(q.device if q.is_cuda else -1):
            if call.world_size > 1 and (buffer := partials_buffer_of(call.group, parts)):
                out = buffer.exchange(parts, q.dtype)[:, :, None]
                call.complete()
                return out
            if call.world_size > 1:
                parts = _gather(merge_partials(parts), call.group, call.rank, call.world_size)
            call.complete()
            return merge_to_output(parts, q.dtype)


def _gather(part: torch.Tensor, group: dist.ProcessGroup, rank: int, world_size: int) -> torch.Tensor:
    parts = part.new_empty((world_size, *part.shape))
    try:
        _all_gather(parts.flatten(0, 1), part, group=group)
    except RuntimeError as error:
        raise RuntimeError(f"rank {rank} lost a peer while ranks gathered their partial results: {error}") from error
    return parts
