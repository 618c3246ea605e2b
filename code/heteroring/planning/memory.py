"""How many tokens fit into each rank's memory, beside buffers as long as the longest shard."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heteroring.planning.chunks import Chunk
from heteroring.planning.work import Work
from heteroring.ring.transport.limits import SLOTS


@dataclass(frozen=True)
class Memory:
    """By rank, bytes `free` for a chunk's tokens and message buffers: token_bytes per token, message_bytes per key."""

    free: np.ndarray
    token_bytes: float
    message_bytes: float

    @classmethod
    def of(cls, work: Work, memory_gb: Sequence[float], chunks: float, prefix_lens: Sequence[int]) -> Memory:
        """The memory of ranks that hold earlier tokens and compute `chunks` chunks, whose KV they keep.

        Args:
            work: What is computed.
            memory_gb: Memory of each rank, in 10^9 bytes.
            chunks: Tokens of the prompt over tokens of a chunk, the factor by which kept KV and messages exceed a
                chunk's.
            prefix_lens: Earlier tokens by rank.

        Returns:
            The memory, by rank.
        """
        message_bytes = SLOTS * work.key_bytes
        taken = work.weight_bytes + message_bytes * max(prefix_lens, default=0)
        free = 1e9 * np.array(memory_gb) - taken - work.kept_bytes * np.array(prefix_lens or [0] * len(memory_gb))
        return cls(free, work.token_bytes + work.kept_bytes * (chunks - 1), message_bytes * chunks)

    def room(self, longest: int) -> list[float]:
        """Tokens that fit into each rank's memory beside buffers for messages of `longest` keys."""
        return ((self.free - self.message_bytes * longest) // self.token_bytes).tolist()

    def most(self, longest: int, multiple: int) -> list[int]:
        """The most tokens of each rank.

        Args:
            longest: Tokens of the longest shard, which sets the size of message buffers; no rank gets more.
            multiple: Tokens are given out in whole multiples of this.

        Returns:
            Tokens by rank.
        """
        return [int(min(max(room, 0), longest)) // multiple * multiple for room in self.room(longest)]

    def longest_shards(self, tokens: int, multiple: int) -> tuple[list[int], int]:
        """Lengths of the longest shard to try in turn, for `tokens` tokens.

        Message buffers grow with the longest shard. Tried are the greatest length that leaves room for all tokens, and
        those at which a rank is just full, because beside a longer shard that rank would hold less.

        Args:
            tokens: Tokens to hold.
            multiple: Tokens are given out in whole multiples of this.

        Returns:
            (lengths, held): no lengths if the tokens do not fit, and then how many tokens do.
        """

        def held(longest: int) -> int:
            return sum(self.most(longest, multiple))

        each = self.free // (self.token_bytes + self.message_bytes)
        full = {int(min(max(room, 0), tokens)) // multiple * multiple for room in each}
        best = max(full, key=held)
        if held(best) < tokens:
            return [], held(best)
        units = range(best // multiple, tokens // multiple + 1)
        longest = units[bisect_left(units, True, key=lambda unit: held(unit * multiple) < tokens) - 1]
        return [multiple * longest, *sorted(length for length in full if held(length) >= tokens)], tokens


def used_gb(work: Work, chunks: Sequence[Chunk], longest_message: int) -> tuple[float, ...]:
    """Memory that each rank takes in the end.

    Args:
        work: What is computed.
        chunks: The calls, by the last of which all KV is kept.
        longest_message: Keys of the longest message, for which there are buffers.

    Returns:
        10^9 bytes by rank.
    """
    computed = np.max([part.block_lens for part, _ in chunks], axis=0)
    last, held = chunks[-1]
    kept = np.array(held or [0] * len(computed)) + last.block_lens - computed
    return tuple(
        work.memory_bytes(int(tokens), longest_message, int(earlier)) / 1e9
        for tokens, earlier in zip(computed, kept, strict=True)
    )
