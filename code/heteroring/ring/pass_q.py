"""Pass-Q for a few new tokens: their queries go to all ranks, keys stay, and partial results come back to be merged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.distributed as dist

from heteroring.kernels.backend import Backend
from heteroring.kernels.decode_partials import merge_partials
from heteroring.ring.consistency import Call
from heteroring.ring.partition import Partition
from heteroring.ring.workload import kv_bytes, pass_q_bytes, pass_q_pairs, score_pairs

# Most new tokens for which "auto" considers pass-Q, by type of device: up to there it was faster with a long prefix
# (docs/experiments/ring.md). It has not been measured on GPUs yet.
MOST_TOKENS = {"cpu": 64}
# Largest number of pairs on the busiest rank, as a multiple of that in pass-KV: in pass-Q a rank computes the pairs of
# the keys that it holds, whatever its speed.
MORE_PAIRS = 2


@lru_cache(maxsize=1024)
def passes_queries(
    partition: Partition,
    prefix_lens: tuple[int, ...],
    causal: bool,
    device_type: str,
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int,
) -> bool:
    """Whether "auto" stands for pass-Q: a few new tokens whose queries and partial results are fewer bytes than KV.

    Bytes are those of the rank that receives the most. No rank may compute more than MORE_PAIRS times the pairs of the
    busiest rank in pass-KV. Time is not compared, since the speeds of ranks and links are not known here; with more
    than MOST_TOKENS new tokens compute takes most of the time, or hides the transfers of pass-KV.

    Args:
        partition: Which new tokens each rank holds.
        prefix_lens: Earlier tokens that each rank holds.
        causal: Whether attention is causal.
        device_type: "cpu" or "cuda"; on CUDA the answer is no.
        batch: Sequences.
        heads: Query heads.
        kv_heads: Heads of keys and values.
        head_dim: Elements of a head.
        itemsize: Bytes of an element.

    Returns:
        Whether queries are passed.
    """
    if not prefix_lens or partition.seq_len > MOST_TOKENS.get(device_type, 0):
        return False
    if max(pass_q_pairs(partition, causal, prefix_lens)) > MORE_PAIRS * max(
        score_pairs(partition, causal, prefix_lens)
    ):
        return False
    sizes = {"batch": batch, "head_dim": head_dim, "itemsize": itemsize}
    of_keys, of_queries = 0, 0
    for rank in range(partition.world_size):
        keys = kv_bytes(partition, rank, kv_heads=kv_heads, causal=causal, prefix_lens=prefix_lens, **sizes)
        queries = pass_q_bytes(partition, rank, heads=heads, prefix_lens=prefix_lens, **sizes)
        of_keys, of_queries = max(of_keys, keys), max(of_queries, queries)
    return of_queries < of_keys


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    partition: Partition,
    prefix_lens: tuple[int, ...],
    causal: bool,
    scale: float,
    compute: Backend,
    call: Call,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `ring_attention` by pass-Q.

    An error of `compute` on one rank is raised on all, before any partial result is sent.

    Args:
        q: This rank's queries [B, Hq, n_r, D].
        k: This rank's keys [B, Hkv, m_r + n_r, D], of its m_r earlier tokens and then of its shard.
        v: The values of the same tokens.
        partition: Which new tokens each rank holds.
        prefix_lens: Earlier tokens that each rank holds.
        causal: Whether attention is causal.
        scale: Factor on the scores.
        compute: The backend.
        call: The call, within its context.

    Returns:
        (out, lse) of this rank: out [B, Hq, n_r, D] in the dtype of q, lse [B, Hq, n_r] in natural log.
    """
    lens, rank = partition.block_lens, call.rank
    batch, heads, _, head_dim = q.shape
    holds = [length + earlier > 0 for length, earlier in zip(lens, prefix_lens or lens, strict=True)]
    places = _places(partition, q.device)
    here = lens if holds[rank] else (0,) * len(lens)  # rows of all ranks that are needed here
    there = tuple(lens[rank] * each for each in holds)  # rows of this rank that are needed there
    rows = q.permute(2, 0, 1, 3).repeat(sum(holds), 1, 1, 1)
    gathered = _exchange(rows, there, here, call)

    def own() -> torch.Tensor:
        """Packed parts [C, B, Hq, D + 1] of all queries, rank by rank, over this rank's keys; C is 0 without keys."""
        if not holds[rank]:
            return q.new_empty((0, batch, heads, head_dim + 1), dtype=torch.promote_types(q.dtype, torch.float32))
        queries = torch.empty_like(gathered).index_copy_(0, places, gathered).permute(1, 2, 0, 3).contiguous()
        out, lse = _over_own_keys(queries, k, v, partition, rank, causal, scale, compute)
        return torch.cat((out, lse[..., None]), 3).permute(2, 0, 1, 3).index_select(0, places)

    parts = _exchange(call.agree(lambda: (("part", "own keys"),), own), here, there, call)
    call.complete()
    merged = merge_partials(parts.view(sum(holds), lens[rank] * batch, heads, head_dim + 1))
    merged = merged.view(lens[rank], batch, heads, head_dim + 1).permute(1, 2, 0, 3)
    return merged[..., :head_dim].to(q.dtype).contiguous(), merged[..., head_dim].contiguous()


@lru_cache(maxsize=64)
def _places(partition: Partition, device: torch.device) -> torch.Tensor:
    """Position of each row, rank by rank: int64 [C]. Cached, because the host waits for the copy to a device."""
    return torch.from_numpy(np.concatenate([partition.positions(r) for r in range(partition.world_size)])).to(device)


def _over_own_keys(
    queries: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    partition: Partition,
    rank: int,
    causal: bool,
    scale: float,
    compute: Backend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Out, unrounded, and LSE of all queries [B, Hq, C, D], by position, over the keys of `rank`; one call per span.

    All queries see the earlier keys; those from a span's start on see the span's keys up to their own position.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    tokens = k.shape[2]
    earlier = tokens - partition.block_lens[rank] if causal else tokens
    if earlier:
        out, lse = compute(queries, k[:, :, :earlier], v[:, :, :earlier], scale=scale, out_dtype=wide)
    else:
        out = torch.zeros_like(queries, dtype=wide)
        lse = out.new_full(out.shape[:3], -torch.inf)
    for start, stop in partition.spans(rank) if causal else ():
        if start < stop:
            keys, values = (x[:, :, earlier : earlier + stop - start] for x in (k, v))
            running = out[:, :, start:], lse[:, :, start:]
            compute(queries[:, :, start:], keys, values, scale=scale, causal_offset=0, running=running)
            earlier += stop - start
    return out, lse


def _exchange(rows: torch.Tensor, sent: Sequence[int], received: Sequence[int], call: Call) -> torch.Tensor:
    """Exchange rows: sent[r] of `rows`, in rank order, go to rank r, and received[r] rows come from it."""
    answer = rows.new_empty((sum(received), *rows.shape[1:]))
    try:
        dist.all_to_all_single(answer, rows.contiguous(), list(received), list(sent), group=call.group)
    except RuntimeError as error:
        raise RuntimeError(f"rank {call.rank} lost a peer while queries were passed: {error}") from error
    return answer
