"""The work that a partition gives each rank: score pairs, rows and bytes in exact integers, and time. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from heteroring.ring.partition import Partition, Span, shard_spans
from heteroring.ring.schedule import ring_steps


def causal_pairs(queries: Span, keys: Span) -> int:
    """Score pairs (i, j), j <= i, with i in `queries` and j in `keys`, both global [start, stop) spans."""
    return _keys_from(queries, keys[0]) - _keys_from(queries, keys[1])


def _keys_from(queries: Span, first_key: int) -> int:
    """Sum over the queries i of the keys in [first_key, i]."""
    return _triangle(queries[1] - first_key) - _triangle(queries[0] - first_key)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2 if n > 0 else 0


def total_pairs(seq_len: int, causal: bool = True) -> int:
    """Score pairs of the whole sequence: N(N+1)/2 if causal, N^2 if not."""
    return _triangle(seq_len) if causal else seq_len * seq_len


def shard_pairs(layout: str, seq_len: int, offset: int, length: int, causal: bool = True) -> int:
    """Score pairs of a shard of `length` tokens behind shards that hold `offset` tokens together.

    For zigzag and causal this is length * (seq_len + 1) / 2 where offset and length are even, whatever the
    shares: work is linear in tokens.
    """
    if not causal:
        return length * seq_len
    return sum(causal_pairs(span, (0, seq_len)) for span in shard_spans(layout, seq_len, offset, length))


def score_pairs(partition: Partition, causal: bool = True, prefix_lens: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Score pairs that each rank computes. Every query also sees the earlier tokens, prefix_lens[r] of them on rank r.

    In zigzag that is n_r (M + (N+1)/2) for M earlier tokens: linear in tokens, too.
    """
    return tuple(
        shard_pairs(partition.layout, partition.seq_len, offset, length, causal) + length * sum(prefix_lens)
        for offset, length in zip(partition.offsets, partition.block_lens, strict=True)
    )


def step_pairs(partition: Partition, q_rank: int, kv_rank: int, causal: bool = True) -> int:
    """Score pairs between the queries of `q_rank` and the keys of `kv_rank`."""
    if not causal:
        return partition.block_lens[q_rank] * partition.block_lens[kv_rank]
    return sum(causal_pairs(queries, keys) for queries in partition.spans(q_rank) for keys in partition.spans(kv_rank))


def shard_extra_rows(layout: str, offset: int, length: int, in_front: int, behind: int, causal: bool = True) -> int:
    """Query rows in the ring steps, other than the one over its own KV, of a shard of `length` tokens.

    The shard lies behind shards that hold `offset` tokens together. `in_front` and `behind` count the other ranks,
    before and after it, that hold tokens; `in_front` also counts those behind with earlier tokens. All rows attend to
    each rank in front. If not causal, all rows attend to each rank behind, too; if causal, only those of the tail do in
    zigzag, and none in contiguous.
    """
    if not causal:
        return (in_front + behind) * length
    tail = 0
    if layout == "zigzag":
        _, (start, stop) = shard_spans(layout, offset + length, offset, length)
        tail = stop - start
    return in_front * length + behind * tail


def extra_rows(partition: Partition, causal: bool = True, prefix_lens: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Query rows of each rank in all rectangles but the one over its own KV, counted once per rectangle.

    Every row attends to each other rank that holds earlier tokens. If that rank is in front, its new tokens belong to
    the same rectangle; if it is behind, they are a rectangle of their own, for the tail. In zigzag a shard of one token
    has no head, so ranks behind it need no step for it; they are counted all the same.
    """
    lens, earlier = partition.block_lens, prefix_lens or (0,) * partition.world_size
    # For each rank, how many of the ranks before it hold keys, how many earlier tokens, and how many new ones.
    keys = [bool(new or before) for new, before in zip(lens, earlier, strict=True)]
    holders, with_earlier, with_new = (list(accumulate(map(bool, each), initial=0)) for each in (keys, earlier, lens))

    def rows(rank: int, offset: int, length: int) -> int:
        if causal:
            in_front = holders[rank] + with_earlier[-1] - with_earlier[rank + 1]
            behind = with_new[-1] - with_new[rank + 1]
        else:
            in_front, behind = holders[-1] - keys[rank], 0
        return shard_extra_rows(partition.layout, offset, length, in_front, behind, causal)

    return tuple(map(rows, range(len(lens)), partition.offsets, lens))


def first_step_rows(partition: Partition, causal: bool = True, prefix_lens: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Those of `extra_rows` in the first rectangle of ring step 1, with the KV of the rank before."""
    lens, earlier = partition.block_lens, prefix_lens or (0,) * partition.world_size

    def rows(rank: int, offset: int, length: int) -> int:
        other = (rank - 1) % len(lens)
        if other == rank:
            return 0
        in_front = bool(earlier[other] or (lens[other] and (other < rank or not causal)))
        behind = not in_front and bool(lens[other])
        return shard_extra_rows(partition.layout, offset, length, in_front, behind, causal)

    return tuple(map(rows, range(len(lens)), partition.offsets, lens))


def causal_flops(batch: int, heads: int, head_dim: int, pairs: int) -> int:
    """Floating-point operations of `pairs` score pairs per head: two matrix products, 2 operations per term."""
    return 4 * batch * heads * head_dim * pairs


def kv_bytes(
    partition: Partition,
    rank: int,
    *,
    batch: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int,
    causal: bool = True,
    prefix_lens: tuple[int, ...] = (),
) -> int:
    """Bytes of keys and values that `rank` receives in one call of pass-KV ring attention."""
    steps = ring_steps(partition, rank, causal, prefix_lens)
    tokens = sum(step.keys for step in steps if step.kv_rank != rank)
    return 2 * tokens * batch * kv_heads * head_dim * itemsize


def pass_q_pairs(partition: Partition, causal: bool = True, prefix_lens: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Score pairs that each rank computes in pass-Q, of its own keys with all queries; in sum as in `score_pairs`."""
    new, earlier = partition.seq_len, prefix_lens or (0,) * partition.world_size
    if not causal:
        return tuple(new * (length + before) for length, before in zip(partition.block_lens, earlier, strict=True))
    return tuple(
        sum(_triangle(new - start) - _triangle(new - stop) for start, stop in partition.spans(rank)) + new * before
        for rank, before in enumerate(earlier)
    )


def pass_q_bytes(
    partition: Partition,
    rank: int,
    *,
    batch: int,
    heads: int,
    head_dim: int,
    itemsize: int,
    prefix_lens: tuple[int, ...] = (),
) -> int:
    """Bytes that `rank` receives in one call of pass-Q: queries for its keys, and partial results for its queries.

    Partial results are an output and an LSE in fp32 (fp64 for fp64 inputs) from each other rank that holds keys.
    """
    lens = partition.block_lens
    holders = [length + before > 0 for length, before in zip(lens, prefix_lens or (0,) * len(lens), strict=True)]
    queries = (partition.seq_len - lens[rank]) * holders[rank]
    parts = lens[rank] * (sum(holders) - holders[rank])
    return batch * heads * (queries * head_dim * itemsize + parts * (head_dim + 1) * max(4, itemsize))


def ring_time(partition: Partition, alone: Sequence[float], causal: bool = True) -> float:
    """Time of the slowest rank if every rank computes its score pairs at its own speed and nothing else takes time.

    alone[r] is the time that rank r alone needs for the whole sequence; the result is in the same unit.
    """
    pairs = score_pairs(partition, causal)
    return max(share * time for share, time in zip(pairs, alone, strict=True)) / sum(pairs)
