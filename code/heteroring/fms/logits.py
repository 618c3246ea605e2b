"""Exchange of logits: those of the last token broadcast by one rank, or those of all tokens gathered on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from heteroring.ring.partition import Partition
from heteroring.ring.shard import place


def share_last(logits: torch.Tensor | None, owner: int, like: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Give the last token's logits to all ranks.

    Args:
        logits: Logits [B, 1, V] on rank `owner`; not used elsewhere.
        owner: The rank that has them.
        like: An empty tensor [B, 0, V] of their dtype and device.
        group: The process group.

    Returns:
        Logits [B, V] on every rank.
    """
    batch, _, vocabulary = like.shape
    shared = like.new_empty(batch, vocabulary) if logits is None else logits[:, -1].contiguous()
    dist.broadcast(shared, group=group, group_src=owner)
    return shared


def gather_all(
    logits: torch.Tensor | None, partition: Partition, like: torch.Tensor, group: dist.ProcessGroup
) -> torch.Tensor:
    """Gather all tokens' logits, in order, on every rank.

    Args:
        logits: This rank's logits [B, n_r, V]; None if it holds no token.
        partition: Which tokens each rank holds.
        like: An empty tensor [B, 0, V] of their dtype and device.
        group: The process group.

    Returns:
        Logits [B, N, V].
    """
    batch, _, vocabulary = like.shape
    whole = like.new_empty(batch, partition.seq_len, vocabulary)
    for rank, length in enumerate(partition.block_lens):
        if not length:
            continue
        mine = rank == dist.get_rank(group)
        part = logits.contiguous() if mine else like.new_empty(batch, length, vocabulary)
        dist.broadcast(part, group=group, group_src=rank)
        place(part, whole, partition, rank, dim=1)
    return whole
