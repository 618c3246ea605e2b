"""Ring attention for prefill: queries stay, keys and values come by (pass-KV)."""

from __future__ import annotations

import torch
import torch.distributed as dist

from heteroring.kernels import triton_block
from heteroring.kernels.block import Block, resolve
from heteroring.ring.agreement import agree
from heteroring.ring.members import members
from heteroring.ring.operands import broken_rule, default_scale, refusal, shapes_of
from heteroring.ring.partition import Partition
from heteroring.ring.schedule import Visit, visits
from heteroring.ring.transport import AHEAD, Exchange, Joinable, check_transport, open_exchange


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

    Raises ValueError if the arguments break a rule above, and on every rank if one rank's do or if the ranks'
    partitions, dtypes, head counts, masks or scales differ; RuntimeError if a rank is lost, or if an earlier call over
    the group ended half way. On CUDA calls are compared once for each kind of them (`heteroring.ring.agreement`), and
    ranks that then mix kinds, or lose one another under the copy-engine transport, get wrong results or wait for ever.
    """
    group, rank, world_size = members(group)
    scale = default_scale(q) if scale is None else scale
    problem = (
        broken_rule(q, k, v, scale, block, "ring_attention")
        or _misfit(q, k, v, partition, rank, world_size)
        or refusal(check_transport, transport)
        or _not_for_kernels(q, k, v, scale, block)
    )
    if world_size > 1:
        call = () if problem else _description(q, k, partition, causal, scale, transport)
        agree(call, problem, group, q.device)
    elif problem:
        raise ValueError(problem)

    compute = resolve(block, q.device, q.dtype, q.shape[-1]) if isinstance(block, str) else block
    with torch.no_grad(), torch.cuda.device(q.device if q.is_cuda else -1):
        steps = {visit.step: visit for visit in visits(partition, rank, causal)}
        if max(partition.block_lens) == partition.seq_len:  # nobody has keys for another rank
            return _own(q, k, v, steps, scale, compute)
        exchange = open_exchange(transport, k, v, partition, causal, group)
        return rotate(q, k, v, steps, exchange, world_size, scale, compute)


def rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    steps: dict[int, Visit],
    exchange: Exchange,
    world_size: int,
    scale: float,
    compute: Block,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The visits `steps` of one rank of two or more, in ring order, KV of the next steps on its way while one computes.

    What `ring_attention` does once its arguments are known to be right; returns the same.
    """
    for step in range(1, min(world_size, 1 + AHEAD)):
        exchange.start(step)
    joined = _joined(q, k, v, steps, exchange, scale, compute)
    out, lse = joined or _own(q, k, v, steps, scale, compute)
    for step in range(1, world_size):
        if step in steps and not (joined and step == 1):
            keys, values = exchange.wait(step)
            rows = slice(steps[step].first_query, None)
            compute(q[:, :, rows], keys, values, scale=scale, running=(out[:, :, rows], lse[:, :, rows]))
        if step + AHEAD < world_size:
            exchange.start(step + AHEAD)
    exchange.close()
    return out.to(q.dtype), lse


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
    takes_late = getattr(compute, "takes_late", None)
    if takes_late is None or not isinstance(exchange, Joinable) or not {0, 1} <= steps.keys() or scale <= 0:
        return None
    late, how = exchange.late(1, steps[1].first_query), _first(q, steps, merges=len(steps) - 2)
    if not takes_late(q, k, v, how["causal_offset"], late):
        return None
    result = compute(q, k, v, scale=scale, late=late, **how)
    exchange.taken(1)
    return result


def _first(q: torch.Tensor, steps: dict[int, Visit], merges: int) -> dict[str, object]:
    """How the visit to the rank's own KV is made, given that `merges` others are folded into its result.

    Rounding it to the dtype of q, as one merge does without harm, saves a GPU whole passes over out. More merges
    would add their roundings up, and get fp32.
    """
    how: dict[str, object] = {"causal_offset": 0 if steps[0].causal else None}
    wide = torch.promote_types(q.dtype, torch.float32)
    if wide != q.dtype and merges > (1 if q.is_cuda else 0):
        how["out_dtype"] = wide
    return how


def _misfit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, partition: Partition, rank: int, world_size: int
) -> str | None:
    """How this rank's tensors, or the group, differ from the partition, in words."""
    if not isinstance(partition, Partition):
        return f"partition is {partition!r}: it must be a Partition"
    if partition.world_size != world_size:
        return f"the partition has {partition.world_size} ranks ({partition.block_lens}), the group has {world_size}"
    expected = partition.block_lens[rank]
    if q.shape[2] != expected or k.shape[2] != expected:
        return f"{shapes_of(q, k, v)}: rank {rank} of block_lens {partition.block_lens} must hold {expected} tokens"
    return None


def _not_for_kernels(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, block: str | Block) -> str | None:
    """What a kernel would refuse after messages are under way, in words."""
    if q.is_cuda and any(x.stride(3) != 1 and x.shape[3] > 1 for x in (q, k, v)):
        strides = ", ".join(f"{name} {x.stride()}" for name, x in (("q", q), ("k", k), ("v", v)))
        return f"strides are {strides}: on CUDA the last of each must be 1"
    return refusal(triton_block.check, q, k, v, scale) if block == "triton" else None


def _description(
    q: torch.Tensor, k: torch.Tensor, partition: Partition, causal: bool, scale: float, transport: str
) -> tuple[tuple[str, object], ...]:
    return (
        ("layout", partition.layout),
        ("block_lens", partition.block_lens),
        ("dtype", str(q.dtype)),
        ("batch", q.shape[0]),
        ("query heads", q.shape[1]),
        ("KV heads", k.shape[1]),
        ("head dimension", q.shape[-1]),
        ("causal", causal),
        ("scale", float(scale)),
        ("transport", transport),
    )
