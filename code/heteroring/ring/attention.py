"""Ring attention for prefill: keys and values travel (pass-KV), or the queries of a few new tokens do (pass-Q)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import add
from typing import Any

import torch
import torch.distributed as dist

from heteroring.arguments import flag
from heteroring.kernels.backend import Backend, PendingKVBackend, check_operands, resolve
from heteroring.ring.consistency import Call, Fields
from heteroring.ring.partition import Partition
from heteroring.ring.pass_q import attend, passes_queries
from heteroring.ring.prefix import Prefix, concatenated
from heteroring.ring.schedule import RingStep, ring_steps
from heteroring.ring.transport.transport import AHEAD, Exchange, can_fuse, open_exchange
from heteroring.ring.validation import (
    check_partition,
    check_passing,
    check_prefix,
    check_transport,
    described,
    in_rows,
    operands,
)


def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    partition: Partition,
    group: dist.ProcessGroup | None = None,
    causal: bool = True,
    scale: float | None = None,
    prefix: Prefix | None = None,
    *,
    block: str | Backend = "auto",
    transport: str = "auto",
    passing: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of this rank's queries to the keys and values of all ranks. Forward only.

    Every rank of the group must call, also a rank whose shard is empty. A rank first attends to its own KV; while a
    ring step computes, the messages of the next steps are under way. Shards are never padded. In the fused first step
    (on Hopper) the kernel itself waits for the first peer's keys and keeps its SMs meanwhile, so whatever that peer's
    call waits for, such as a collective on another stream, must not need those SMs.

    q, k and v may have any strides. A tensor is copied first if its last dimension is not contiguous or its rows
    overlap, and on CUDA also if its rows do not begin at multiples of 16 bytes.

    On CUDA the ranks compare their arguments once per kind of call (`Call.agree` in heteroring.ring.consistency), or in
    every call if HETERORING_COMPARE=every is set for all ranks. Ranks that mix up kinds compared before, or that lose a
    peer under the copy-engine transport, get wrong results or wait forever.

    Args:
        q: This rank's queries [B, Hq, n_r, D] with n_r = partition.block_lens[rank], as `heteroring.shard` gives them.
        k: This rank's keys [B, Hkv, n_r, D]; Hq is a multiple of Hkv.
        v: This rank's values [B, Hkv, n_r, D].
        partition: Which tokens each rank holds; the same on all ranks.
        group: The process group, in whose order ranks are numbered. None stands for all processes, or for a single
            rank where torch.distributed is not initialized.
        causal: Whether a query sees only the keys up to its own position.
        scale: Factor on the scores; None stands for 1/sqrt(D).
        prefix: Earlier tokens that this rank holds, which all queries of all ranks see; the partition is of the new
            tokens alone. Either all ranks give one, with the same lengths, or none does.
        block: Name of a backend, "auto" for the fastest one, or a `heteroring.kernels.backend.Backend`.
        transport: "p2p", "copy-engine", or "auto" for the fastest one that the group can use.
        passing: "kv" to send keys to the queries; "q" to send queries to the keys and partial results back, by
            collectives of the group, so that each rank computes the pairs of the keys that it holds; "auto" for "q" on
            the CPU where that is fewer bytes, for a few new tokens behind a long prefix, and otherwise, or where
            `block` is a Backend, for "kv".

    Returns:
        (out, lse): out [B, Hq, n_r, D] in the dtype of q, and lse [B, Hq, n_r] in natural log, in fp32 (fp64 for fp64
        inputs).

    Raises:
        ValueError: On every rank, if an argument of any rank breaks a rule above, or if the ranks' partitions, dtypes,
            head counts, masks, scales or prefix lengths differ, or if the ranks call different verbs, or from threads
            of different names.
        RuntimeError: If a rank is lost, or if an earlier call over the group ended half way.
        Exception: An error of a backend while keys are passed, on its rank alone: the other ranks get their results,
            and the next call is right. While queries are passed it is a ValueError on every rank.
    """
    with Call("ring_attention", group, q) as call:
        prefix_lens: tuple[int, ...] = ()

        def describe() -> Fields:
            nonlocal q, k, v, causal, scale, prefix_lens
            q, k, v, scale = operands(q, k, v, scale, block, "ring_attention")
            causal = flag("causal", causal)
            check_partition(q, k, v, partition, call.rank, call.world_size)
            check_transport(transport)
            check_passing(passing)
            prefix_lens = check_prefix(prefix, k, call.rank, call.world_size)
            if prefix is not None and prefix_lens:
                k, v = in_rows(concatenated(prefix.k, k)), in_rows(concatenated(prefix.v, v))
            check_operands(block, q, k, v, scale)
            return (
                ("layout", partition.layout),
                ("block_lens", partition.block_lens),
                ("prefix lengths", prefix_lens),
                ("causal", causal),
                ("transport", transport),
                ("passing", passing),
                *described(q, k, scale),
            )

        def chosen() -> PendingKVBackend:
            return resolve(block, q.device, q.dtype, q.shape[-1])

        compute = call.agree(describe, chosen)
        assert scale is not None  # since `describe` was called
        with torch.no_grad(), torch.cuda.device(q.device if q.is_cuda else -1):
            steps = {step.index: step for step in ring_steps(partition, call.rank, causal, prefix_lens)}
            held = tuple(map(add, partition.block_lens, prefix_lens)) if prefix_lens else partition.block_lens
            if max(held) == sum(held):  # one rank holds all keys: nothing to exchange
                call.complete()
                return _own_step(q, k, v, steps, scale, compute)
            # A backend of the caller's own may count on a rank's pairs being those of its queries.
            considered = passing == "auto" and isinstance(block, str)
            if passing == "q" or (considered and _fewer_bytes(q, k, partition, prefix_lens, causal)):
                return attend(q, k, v, partition, prefix_lens, causal, scale, compute, call)
            exchange = open_exchange(transport, k, v, partition, causal, call.group, prefix_lens)
            return rotate(q, k, v, steps, exchange, call.world_size, scale, compute, call.complete)


def _fewer_bytes(
    q: torch.Tensor, k: torch.Tensor, partition: Partition, prefix_lens: tuple[int, ...], causal: bool
) -> bool:
    batch, heads, _, head_dim = q.shape
    sizes = {"batch": batch, "heads": heads, "kv_heads": k.shape[1], "head_dim": head_dim, "itemsize": q.itemsize}
    return passes_queries(partition, prefix_lens, causal, q.device.type, **sizes)


def rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    steps: dict[int, RingStep],
    exchange: Exchange,
    world_size: int,
    scale: float,
    compute: PendingKVBackend,
    closed: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the ring steps of one rank while the KV of the next steps is on its way.

    This is what `ring_attention` does over two ranks or more once its arguments are known to be right.

    Args:
        q: This rank's queries [B, Hq, n_r, D].
        k: This rank's keys [B, Hkv, m_r + n_r, D], of its m_r earlier tokens and then of its shard.
        v: The values of the same tokens.
        steps: This rank's steps, by index; those without work are absent.
        exchange: The messages of this call.
        world_size: Ranks of the group.
        scale: Factor on the scores.
        compute: The backend.
        closed: Called when all messages are through, also before an error of `compute` is raised.

    Returns:
        (out, lse) of this rank: out [B, Hq, n_r, D] in the dtype of q, lse [B, Hq, n_r] in natural log.
    """
    for step in range(1, min(world_size, 1 + AHEAD)):
        exchange.start(step)
    remote = steps.keys() - {0}
    arriving = _arriving(remote, exchange, world_size, closed)
    try:
        fused = _fused_first_step(q, k, v, steps, exchange, scale, compute)
        if fused:
            remote.discard(1)
        out, lse = fused or _own_step(q, k, v, steps, scale, compute)
        for step, keys, values in arriving:
            for rectangle in steps[step].rectangles:
                _merge(rectangle, q, keys, values, scale, compute, out, lse)
    except Exception:
        for _ in arriving:  # the peers still need this rank's keys
            pass
        raise
    return out.to(q.dtype), lse


def _arriving(
    remote: set[int], exchange: Exchange, world_size: int, closed: Callable[[], None]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (step, keys, values) of the steps `remote`, in order; after each, start the next messages."""
    for step in range(1, world_size):
        if step in remote:
            yield step, *exchange.wait(step)
        if step + AHEAD < world_size:
            exchange.start(step + AHEAD)
    exchange.close()
    closed()


def _own_step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, steps: dict[int, RingStep], scale: float, compute: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """Step 0, over the rank's own KV, into whose result the other steps are merged."""
    if 0 not in steps:
        return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
    return compute(q, k, v, scale=scale, **_first_step_options(q, steps, fused=0))


def _merge(
    rectangle: tuple[int, int, int],
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    compute: Backend,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Merge one of the rectangles of a ring step, whose KV is `keys` and `values`, into the running out and LSE."""
    first_query, first_key, end = rectangle
    rows = slice(first_query, None)
    if end - first_key < keys.shape[2]:
        keys, values = keys[:, :, first_key:end], values[:, :, first_key:end]
    compute(q[:, :, rows], keys, values, scale=scale, running=(out[:, :, rows], lse[:, :, rows]))


def _fused_first_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    steps: dict[int, RingStep],
    exchange: Exchange,
    scale: float,
    compute: PendingKVBackend,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Steps 0 and 1 in one kernel pass, or None where the backend or the transport cannot do that."""
    if not can_fuse(exchange) or not {0, 1} <= steps.keys() or scale <= 0:
        return None
    options = _first_step_options(q, steps, fused=1)
    (first_query, _, keys), *rest = steps[1].rectangles
    arriving = exchange.pending(1, first_query)
    options["pending"] = arriving._replace(k=arriving.k[:, :, :keys], v=arriving.v[:, :, :keys]) if rest else arriving
    if not compute.takes_pending(q, k, v, options["causal_offset"], options["pending"]):
        return None
    out, lse = compute(q, k, v, scale=scale, **options)
    exchange.consumed(1)
    for rectangle in rest:  # the kernel has waited for all heads
        _merge(rectangle, q, arriving.k, arriving.v, scale, compute, out, lse)
    return out, lse


def _first_step_options(q: torch.Tensor, steps: dict[int, RingStep], fused: int) -> dict[str, Any]:
    """Keywords for the backend in the step over the rank's own KV, which computes `fused` further rectangles as well.

    On a GPU, a result into which only one other is merged is kept in the dtype of q, which saves whole passes over it.
    With more merges their rounding errors would add up, so the result is kept in fp32.
    """
    options: dict[str, Any] = {"causal_offset": steps[0].prefix if steps[0].causal else None}
    merges = sum(len(step.rectangles) for step in steps.values()) - 1 - fused
    wide = torch.promote_types(q.dtype, torch.float32)
    if wide != q.dtype and merges > (1 if q.is_cuda else 0):
        options["out_dtype"] = wide
    return options
