"""The ring steps of a rank: the order in which it attends to the KV chunks, and the rectangle that each computes.

Causal attention of 12 tokens, 8 on rank 0 and 4 on rank 1. A row is a query, a column a key. `0` and `1`: pairs that
ranks 0 and 1 compute in step 0, with their own KV; `a` and `b`: pairs of ranks 0 and 1 in step 1, with the other's KV::

    query   contiguous    zigzag
        0   0             0
        1   00            00
        2   000           000
        3   0000          0000
        4   00000         bbbb1
        5   000000        bbbb11
        6   0000000       bbbb111
        7   00000000      bbbb1111
        8   bbbbbbbb1     0000aaaa0
        9   bbbbbbbb11    0000aaaa00
       10   bbbbbbbb111   0000aaaa000
       11   bbbbbbbb1111  0000aaaa0000
    pairs   36 : 42       52 : 26

In zigzag, work is in proportion to tokens, 2 : 1, and every step but a rank's own is one dense rectangle.

With a prefix, every rank also holds earlier tokens, which lie before the whole sequence, so that all queries see them.
A rank's keys are then its prefix and, behind it, its shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from heteroring.ring.partition import Partition


@dataclass(frozen=True)
class RingStep:
    """Ring step `index` of a rank: its queries from `first_query` on by the first `keys` keys of rank `kv_rank`.

    Indices are local to the shards. The first `prefix` of the keys are the KV rank's earlier tokens, which the queries
    before `first_query` see, too. `causal` marks the rank's own keys under a causal mask: query i sees key
    j <= i + `prefix` there, because a shard's positions ascend. Every other step consists of dense rectangles.
    """

    index: int
    kv_rank: int
    first_query: int
    keys: int
    causal: bool
    prefix: int = 0

    @property
    def rectangles(self) -> tuple[tuple[int, int, int], ...]:
        """(first query, first key, end of keys) of each rectangle: two where some queries see the prefix alone."""
        if self.prefix and self.first_query:
            return (0, 0, self.prefix), (self.first_query, self.prefix, self.keys)
        return ((self.first_query, 0, self.keys),)


@lru_cache(maxsize=1024)
def ring_steps(
    partition: Partition, rank: int, causal: bool, prefix_lens: tuple[int, ...] = ()
) -> tuple[RingStep, ...]:
    """Steps of a rank, in ring order: its own keys first, then those of the rank before it, and so on.

    Steps that a causal mask would leave empty are absent: neither computed nor sent. In zigzag, all queries see the
    head of a rank in front, and only the tail's queries see a rank behind (docs/ring.md, "Who computes what").

    Args:
        partition: Which tokens each rank holds.
        rank: The rank, from 0.
        causal: Whether attention is causal.
        prefix_lens: Earlier tokens that each rank holds; () for none.

    Returns:
        The steps, by ascending index.
    """
    found = []
    length = partition.block_lens[rank]
    for index in range(partition.world_size):
        kv_rank = (rank - index) % partition.world_size
        prefix = prefix_lens[kv_rank] if prefix_lens else 0
        first_query, keys = 0, partition.block_lens[kv_rank]
        if causal and kv_rank != rank:
            if partition.layout == "zigzag":
                if kv_rank < rank:
                    keys = partition.head_len(kv_rank)
                else:
                    first_query = partition.head_len(rank)
            elif kv_rank > rank:
                keys = 0
        if keys == 0 or first_query == length:  # no query sees a key of this shard
            first_query, keys = 0, 0
        if length > 0 and prefix + keys > 0:
            found.append(RingStep(index, kv_rank, first_query, prefix + keys, causal and kv_rank == rank, prefix))
    return tuple(found)
