"""Cut a tensor of a whole sequence into the shards of a partition, and put the shards together again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heteroring.ring.partition import Partition


def shard(x: torch.Tensor, partition: Partition, rank: int, dim: int) -> torch.Tensor:
    """The shard of `rank`: its tokens of a whole sequence, in ascending order.

    Args:
        x: The whole sequence, of any shape with partition.seq_len tokens along `dim`.
        partition: Which tokens each rank holds.
        rank: The rank, from 0.
        dim: The dimension of tokens.

    Returns:
        A new tensor like `x`, with partition.block_lens[rank] tokens along `dim`.

    Raises:
        ValueError: If `x` does not have partition.seq_len tokens along `dim`.
        IndexError: For a rank outside the partition.
    """
    if x.shape[dim] != partition.seq_len:
        raise ValueError(
            f"dimension {dim} of a tensor of shape {tuple(x.shape)} has {x.shape[dim]} tokens, "
            f"but block_lens {partition.block_lens} sum to {partition.seq_len}"
        )
    return torch.cat([x.narrow(dim, start, stop - start) for start, stop in partition.spans(rank)], dim)


def unshard(shards: Sequence[torch.Tensor], partition: Partition, dim: int) -> torch.Tensor:
    """The whole sequence from the shards of all ranks: the inverse of `shard`.

    Args:
        shards: One tensor per rank, in rank order, with partition.block_lens[rank] tokens along `dim`.
        partition: Which tokens each rank holds.
        dim: The dimension of tokens.

    Returns:
        A new tensor with partition.seq_len tokens along `dim`, on the device of the first shard.

    Raises:
        ValueError: If the number of shards or the length of one differs from the partition's, or if the shards differ
            in dtype, or in shape along another dimension.
    """
    if len(shards) != partition.world_size:
        raise ValueError(f"{len(shards)} shards were given for a partition of {partition.world_size} ranks")
    for rank, (part, length) in enumerate(zip(shards, partition.block_lens, strict=True)):
        if part.shape[dim] != length:
            raise ValueError(
                f"shard {rank} has {part.shape[dim]} tokens along dimension {dim}, "
                f"but block_lens {partition.block_lens} give it {length}"
            )
    shape = list(shards[0].shape)
    for rank, (part, length) in enumerate(zip(shards, partition.block_lens, strict=True)):
        shape[dim] = length
        if list(part.shape) != shape or part.dtype != shards[0].dtype:
            raise ValueError(
                f"shard {rank} is {part.dtype} of shape {tuple(part.shape)}: beside shard 0, it must be "
                f"{shards[0].dtype} of shape {tuple(shape)}"
            )
    shape[dim] = partition.seq_len
    whole = shards[0].new_empty(shape)
    for rank, part in enumerate(shards):
        place(part, whole, partition, rank, dim)
    return whole


def place(part: torch.Tensor, whole: torch.Tensor, partition: Partition, rank: int, dim: int) -> None:
    """Copy a shard to the places of its tokens in the whole sequence.

    Args:
        part: The shard of `rank`.
        whole: The whole sequence, which is written to.
        partition: Which tokens each rank holds.
        rank: The rank, from 0.
        dim: The dimension of tokens.
    """
    taken = 0
    for start, stop in partition.spans(rank):
        whole.narrow(dim, start, stop - start).copy_(part.narrow(dim, taken, stop - start))
        taken += stop - start
