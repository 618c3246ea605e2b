"""Ring attention for prefill: queries stay, keys and values come by (pass-KV)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from heteroring.kernels.block import Block, check_operands, resolve, takes_late
from heteroring.ring.arguments import flag
from heteroring.ring.consistency import Call, Fields
from heteroring.ring.partition import Partition
from heteroring.ring.schedule import Visit, visits
from heteroring.ring.transport.transport import AHEAD, Exchange, Joinable, check_transport, open_exchange
from heteroring.ring.validation import described, operands, shapes_of


def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    partition: Partition,
    group: dist.ProcessGroup | None = None,
    causal: bool = True,
    scale: float | None = None,
    *,
    block: str | Block = "auto",
    transport: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of this rank's queries to the keys and values of all ranks. Forward only.

    q [B, Hq, n_r, D] and k, v [B, Hkv, n_r, D] are this rank's shards (`heteroring.shard`), n_r =
    partition.block_lens[rank], Hq a multiple of Hkv; rank order is that of `group` (default: all processes; none
    needed for one rank). `scale` defaults to 1/sqrt(D). `block` is a backend name or a Block; `transport` a
    transport name. Returns (out, lse): out [B, Hq, n_r, D] like q, lse [B, Hq, n_r] fp32 (fp64 for fp64), natural
    log. Every rank of the group must call, also one whose shard is empty.

    A rank's first visit is to its own KV; the messages of the next steps are under way while a step computes. No
    shard is ever padded. On Hopper the kernel itself waits for the first peer's keys, and keeps its multiprocessors
    meanwhile: what that peer's call is waiting for (a collective on another stream, say) may not need them.

    q, k and v may have any strides: what has no contiguous last dimension, or rows that overlap, is copied first, and
    on CUDA what does not lie at multiples of 16 bytes.

    Raises ValueError if the arguments break a rule above, and on every rank if one rank's do or if the ranks'
    partitions, dtypes, head counts, masks or scales differ, if they call different verbs, or from threads of different
    names. On CUDA calls are compared once for each kind of them (`Call.agree` in heteroring.ring.consistency; with
    HETERORING_COMPARE=every in the environment of all ranks, always), and ranks that then mix kinds, or lose one
    another under the copy-engine transport, get wrong results or wait for ever. RuntimeError if a rank is lost, or if
    an earlier call over the group ended half way. What a Block raises it raises on its rank alone: the others get
    their results, and the next call is right.
    """
    with Call("ring_attention", group, q) as call:

        def describe() -> Fields:
            nonlocal q, k, v, causal, scale
            q, k, v, scale = operands(q, k, v, scale, block, "ring_attention")
            causal = flag("causal", causal)
            _check_partition(q, k, v, partition, call.rank, call.world_size)
            check_transport(transport)
            check_operands(block, q, k, v, scale)
            return (
                ("layout", partition.layout),
                ("block_lens", partition.block_lens),
                ("causal", causal),
                ("transport", transport),
                *described(q, k, scale),
            )

        def chosen() -> Block:
            return resolve(block, q.device, q.dtype, q.shape[-1])

        compute = call.agree(describe, chosen)
        assert scale is not None  # since `describe` was called
        with torch.no_grad(), torch.cuda.device(q.device if q.is_cuda else -1):
            steps = {visit.step: visit for visit in visits(partition, call.rank, causal)}
            if max(partition.block_lens) == partition.seq_len:  # nobody has keys for another rank
                call.complete()
                return _own(q, k, v, steps, scale, compute)
            exchange = open_exchange(transport, k, v, partition, causal, call.group)
            return rotate(q, k, v, steps, exchange, call.world_size, scale, compute, call.complete)


def rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    steps: dict[int, Visit],
    exchange: Exchange,
    world_size: int,
    scale: float,
    compute: Block,
    closed: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The visits `steps` of one rank of two or more, in ring order, KV of the next steps on its way while one computes.

    What `ring_attention` does once its arguments are known to be right; returns the same. `closed()` is called when
    all messages are through, also before an error of `compute` is raised.
    """
    for step in range(1, min(world_size, 1 + AHEAD)):
        exchange.start(step)
    remote = steps.keys() - {0}
    arriving = _arriving(remote, exchange, world_size, closed)
    try:
        joined = _joined(q, k, v, steps, exchange, scale, compute)
        if joined:
            remote.discard(1)
        out, lse = joined or _own(q, k, v, steps, scale, compute)
        for step, keys, values in arriving:
            rows = slice(steps[step].first_query, None)
            compute(q[:, :, rows], keys, values, scale=scale, running=(out[:, :, rows], lse[:, :, rows]))
    except Exception:
        for _ in arriving:  # the peers need this rank's keys all the same
            pass
        raise
    return out.to(q.dtype), lse


def _arriving(
    remote: set[int], exchange: Exchange, world_size: int, closed: Callable[[], None]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(step, keys, values) of the steps `remote`, in order; behind each, the next messages are begun."""
    for step in range(1, world_size):
        if step in remote:
            yield step, *exchange.wait(step)
        if step + AHEAD < world_size:
            exchange.start(step + AHEAD)
    exchange.close()
    closed()


def _own(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, steps: dict[int, Visit], scale: float, compute: Block
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first visit, to the rank's own KV: what the others are folded into."""
    if 0 not in steps:
        return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
    return compute(q, k, v, scale=scale, **_first(q, steps, merges=len(steps) - 1))


def _joined(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    steps: dict[int, Visit],
    exchange: Exchange,
    scale: float,
    compute: Block,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The first visit and that of step 1 in one, where block and transport can do that; None where they cannot."""
    if not isinstance(exchange, Joinable) or not {0, 1} <= steps.keys() or scale <= 0:
        return None
    late, how = exchange.late(1, steps[1].first_query), _first(q, steps, merges=len(steps) - 2)
    if not takes_late(compute, q, k, v, how["causal_offset"], late):
        return None
    result = compute(q, k, v, scale=scale, **how | {"late": late})
    exchange.taken(1)
    return result


def _first(q: torch.Tensor, steps: dict[int, Visit], merges: int) -> dict[str, Any]:
    """How the visit to the rank's own KV is made, given that `merges` others are folded into its result.

    Rounding it to the dtype of q, as one merge does without harm, saves a GPU whole passes over out. More merges
    would add their roundings up, and get fp32.
    """
    how: dict[str, Any] = {"causal_offset": 0 if steps[0].causal else None}
    wide = torch.promote_types(q.dtype, torch.float32)
    if wide != q.dtype and merges > (1 if q.is_cuda else 0):
        how["out_dtype"] = wide
    return how


def _check_partition(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, partition: Partition, rank: int, world_size: int
) -> None:
    """Raise ValueError if this rank's tensors, or the group, differ from the partition."""
    if not isinstance(partition, Partition):
        raise ValueError(f"partition is {partition!r}: it must be a Partition")
    if partition.world_size != world_size:
        raise ValueError(
            f"the partition has {partition.world_size} ranks ({partition.block_lens}), the group has {world_size}"
        )
    expected = partition.block_lens[rank]
    if q.shape[2] != expected or k.shape[2] != expected:
        raise ValueError(
            f"{shapes_of(q, k, v)}: rank {rank} of block_lens {partition.block_lens} must hold {expected} tokens"
        )
