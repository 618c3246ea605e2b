"""Partitions: which tokens of a sequence each rank holds, in the contiguous and the zigzag layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import index

import numpy as np

from heteroring.words import choices

LAYOUTS = ("contiguous", "zigzag")

Span = tuple[int, int]


@dataclass(frozen=True)
class Partition:
    """A sequence of `seq_len` tokens laid out over `world_size` ranks, `block_lens[r]` of them on rank r.

    In the `contiguous` layout a rank holds one span. In `zigzag` it holds two: a head at the front of the
    sequence and a tail mirrored at its back, so that under a causal mask a shard's mean cost per token is the same on
    every rank, whatever the shares. A zero-length shard is allowed; an empty sequence is not.

    Args:
        layout: "contiguous" or "zigzag".
        block_lens: Tokens per rank, in rank order, each 0 or more; their sum is `seq_len`.

    Raises:
        ValueError: For an unknown layout, no ranks, a negative length or an empty sequence.
        TypeError: For a length that is not an integer.
    """

    layout: str
    block_lens: tuple[int, ...]

    def __post_init__(self) -> None:
        check_layout(self.layout)
        lens = tuple(_length(rank, length) for rank, length in enumerate(self.block_lens))
        if not lens:
            raise ValueError("block_lens is empty: a partition needs at least one rank")
        for rank, length in enumerate(lens):
            if length < 0:
                raise ValueError(f"block_lens[{rank}] is {length}: a rank holds 0 tokens or more")
        if sum(lens) < 1:
            raise ValueError(f"block_lens {lens} sum to 0: the sequence needs at least one token")
        object.__setattr__(self, "block_lens", lens)

    @classmethod
    def contiguous(cls, block_lens: Iterable[int]) -> Partition:
        """A partition with one span per rank, in rank order.

        Args:
            block_lens: Tokens per rank, in rank order.

        Returns:
            The partition.

        Raises:
            ValueError: For no ranks, a negative length or an empty sequence.
            TypeError: For a length that is not an integer.
        """
        return cls("contiguous", tuple(block_lens))

    @classmethod
    def zigzag(cls, block_lens: Iterable[int]) -> Partition:
        """A partition with a head and a mirrored tail per rank: heads in rank order from the front, tails from behind.

        Args:
            block_lens: Tokens per rank, in rank order.

        Returns:
            The partition.

        Raises:
            ValueError: For no ranks, a negative length or an empty sequence.
            TypeError: For a length that is not an integer.
        """
        return cls("zigzag", tuple(block_lens))

    @property
    def seq_len(self) -> int:
        """Tokens of the whole sequence."""
        return sum(self.block_lens)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.block_lens)

    def spans(self, rank: int) -> tuple[Span, ...]:
        """Global [start, stop) spans of the tokens of `rank`, in ascending order.

        Args:
            rank: The rank, from 0.

        Returns:
            One span if contiguous, two (head, tail) if zigzag. Any of them may be empty.

        Raises:
            IndexError: For a rank outside the partition.
        """
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside a partition of {self.world_size} ranks")
        start = sum(self.block_lens[:rank])
        return shard_spans(self.layout, self.seq_len, start, self.block_lens[rank])

    def positions(self, rank: int) -> np.ndarray:
        """Global positions of the tokens of `rank`, in ascending order.

        Args:
            rank: The rank, from 0.

        Returns:
            int64 [block_lens[rank]].

        Raises:
            IndexError: For a rank outside the partition.
        """
        return np.concatenate([np.arange(*span, dtype=np.int64) for span in self.spans(rank)])

    def head_len(self, rank: int) -> int:
        """Tokens in the first span of a rank.

        Args:
            rank: The rank, from 0.

        Returns:
            The length of the head in zigzag, of the whole shard if contiguous.

        Raises:
            IndexError: For a rank outside the partition.
        """
        start, stop = self.spans(rank)[0]
        return stop - start

    @property
    def offsets(self) -> tuple[int, ...]:
        """Tokens that the ranks before each rank hold together, in rank order."""
        return (0, *accumulate(self.block_lens[:-1]))


def _length(rank: int, length: int) -> int:
    try:
        return index(length)
    except TypeError:
        raise TypeError(f"block_lens[{rank}] is {length!r}: a length is an integer") from None


def check_layout(layout: str) -> None:
    """Raise ValueError unless `layout` is one of LAYOUTS."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown: choose {choices(layout, LAYOUTS)}")


def shard_spans(layout: str, seq_len: int, offset: int, length: int) -> tuple[Span, ...]:
    """Spans of a shard.

    Zigzag halves the running total of tokens, not each shard's length: head borders lie at floor(offset / 2) and tail
    borders at seq_len - ceil(offset / 2), so rounding does not accumulate over ranks.

    Args:
        layout: "contiguous" or "zigzag".
        seq_len: Tokens of the sequence.
        offset: Tokens that the shards before this one hold together.
        length: Tokens of the shard.

    Returns:
        One [start, stop) span in contiguous; head and tail in zigzag, whose lengths differ by at most one token.
    """
    stop = offset + length
    if layout == "contiguous":
        return ((offset, stop),)
    head = (offset // 2, stop // 2)
    tail = (seq_len - (stop - stop // 2), seq_len - (offset - offset // 2))
    return (head, tail)
