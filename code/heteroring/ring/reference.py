"""Ring attention in plain PyTorch, all ranks in one process: an explanation, and the oracle of the tests."""

import torch

from heteroring.ring.partition import Partition
from heteroring.ring.shard import shard, unshard


def ring_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, partition: Partition, causal: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over a whole sequence, computed shard by shard as the ranks of a ring compute it.

    q [B, Hq, N, D], k and v [B, Hkv, N, D] hold the whole sequence, N = partition.seq_len, Hq a multiple of Hkv.
    Returns (out, lse) of the whole sequence, out [B, Hq, N, D] and lse [B, Hq, N] in natural log, in the dtype of q.
    """
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    ranks = range(partition.world_size)
    queries, keys, values = ([shard(x, partition, rank, dim=2) for rank in ranks] for x in (q, k, v))
    positions = [torch.from_numpy(partition.positions(rank)) for rank in ranks]

    results = []
    for rank in ranks:
        out = torch.zeros_like(queries[rank])
        lse = out.new_full(out.shape[:-1], -torch.inf)
        for step in ranks:  # own KV first, then the KV chunk of the rank before, and so on round the ring
            kv_rank = (rank - step) % partition.world_size
            hidden = positions[kv_rank] > positions[rank][:, None] if causal else torch.tensor(False)
            out, lse = merge(out, lse, *attend(queries[rank], keys[kv_rank], values[kv_rank], hidden))
        results.append((out, lse))
    out, lse = (unshard(shards, partition, dim=2) for shards in zip(*results, strict=True))
    return out, lse


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of q [B, H, m, D] to one KV chunk [B, H, n, D], without the pairs in `hidden` [m, n], and its LSE.

    A query that sees no key gives out 0 and lse -inf.
    """
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - finite(lse)[..., None]).exp()
    return weights @ v, lse


def merge(
    out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to two disjoint sets of keys from the attention to each: a mean weighted by exp(lse)."""
    total = torch.logaddexp(lse, part_lse)
    weight, part_weight = ((x - finite(total)).exp()[..., None] for x in (lse, part_lse))
    return weight * out + part_weight * part, total


def finite(lse: torch.Tensor) -> torch.Tensor:
    """`lse` with 0 for the -inf of a query without keys, so that exp(-inf - lse) is 0 and not NaN."""
    return lse.masked_fill(lse == -torch.inf, 0.0)
