"""Exchange of logits: those of the last token broadcast by one rank, or those of all tokens gathered on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from heteroring.ring.partition import Partition
from heteroring.ring.shard import place


def share_last(logits: torch.Tensor | None, owner: int, like: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The logits [B, 1, V] of rank `owner` as [B, V] on every rank; `like` [B, 0, V] has their dtype and device."""
    batch, _, vocabulary = like.shape
    shared = like.new_empty(batch, vocabulary) if logits is None else logits[:, -1].contiguous()
    dist.broadcast(shared, group=group, group_src=owner)
    return shared


def gather_all(
    logits: torch.Tensor | None, partition: Partition, like: torch.Tensor, group: dist.ProcessGroup
) -> torch.Tensor:
    """All tokens' logits [B, N, V] in order, on every rank, from each rank's [B, n_r, V]; `like` as in `share_last`."""
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
