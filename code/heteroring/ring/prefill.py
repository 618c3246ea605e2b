"""Ring attention for prefill: queries stay, keys and values come by (pass-KV)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from heteroring.kernels.block import Block, check_block, resolve
from heteroring.ring.agreement import agree
from heteroring.ring.members import members
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

    A rank's first visit is to its own KV; the messages of the next step are under way while a step computes. No
    shard is ever padded.

    Raises ValueError if the arguments break a rule above, and on every rank if one rank's do or if the ranks'
    partitions, dtypes, head counts, masks or scales differ; RuntimeError if a rank is lost.
    """
    group, rank, world_size = members(group)
    if scale is None:
        scale = 1.0 / math.sqrt(max((1, *q.shape[-1:])))

    problem = _problem(q, k, v, partition, rank, world_size, scale) or _unknown_name(block, transport)
    if world_size > 1:
        call = () if problem else _description(q, k, partition, causal, scale, transport)
        agree(call, problem, group, q.device)
    elif problem:
        raise ValueError(problem)

    compute = resolve(block, q.device, q.dtype, q.shape[-1]) if isinstance(block, str) else block
    with torch.no_grad():
        if world_size == 1:
            return compute(q, k, v, scale=scale, causal_offset=0 if causal else None)
        steps = {visit.step: visit for visit in visits(partition, rank, causal)}
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
    if wide != q.dtype and not (q.is_cuda and merges <= 1):
        how["out_dtype"] = wide
    return how


def _problem(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    partition: Partition,
    rank: int,
    world_size: int,
    scale: float,
) -> str | None:
    """The first rule that this rank's own arguments break, in words."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if partition.world_size != world_size:
        return f"the partition has {partition.world_size} ranks ({partition.block_lens}), the group has {world_size}"
    if any(x.dim() != 4 for x in (q, k, v)):
        return f"{shapes}: each must be [B, H, n, D]"
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        return f"{shapes}: k and v must have one shape, and q their batch and head dimension"
    if q.shape[0] < 1 or q.shape[3] < 1:
        return f"{shapes}: batch and head dimension must be at least 1"
    if k.shape[1] < 1 or q.shape[1] < 1 or q.shape[1] % k.shape[1]:
        return f"q has {q.shape[1]} heads and k has {k.shape[1]}: the first must be a multiple of the second"
    expected = partition.block_lens[rank]
    if q.shape[2] != expected or k.shape[2] != expected:
        return f"{shapes}: rank {rank} of block_lens {partition.block_lens} must hold {expected} tokens"
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        return f"q is {q.dtype}, k {k.dtype}, v {v.dtype}: they must be of one floating-point dtype"
    if not q.device == k.device == v.device:
        return f"q is on {q.device}, k on {k.device}, v on {v.device}: they must be on one device"
    if not math.isfinite(scale):
        return f"scale is {scale}: it must be finite"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "an input requires a gradient, and ring_attention is forward only: call it under torch.no_grad()"
    return None


def _unknown_name(block: str | Block, transport: str) -> str | None:
    """What is wrong with the name of a backend or of a transport, in words."""
    try:
        check_transport(transport)
        if isinstance(block, str):
            check_block(block)
    except ValueError as error:
        return str(error)
    return None


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
