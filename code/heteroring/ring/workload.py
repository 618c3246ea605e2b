"""The work that a partition gives each rank: score pairs, rows and bytes in exact integers, and time. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from heteroring.ring.partition import Partition, Span, shard_spans
from heteroring.ring.schedule import ring_steps


def causal_pairs(queries: Span, keys: Span) -> int:
    """Score pairs (i, j), j <= i, of some queries and keys.

    Args:
        queries: Global [start, stop) span of the queries i.
        keys: Global [start, stop) span of the keys j.

    Returns:
        The number of pairs.
    """
    return _keys_from(queries, keys[0]) - _keys_from(queries, keys[1])


def _keys_from(queries: Span, first_key: int) -> int:
    """Sum over the queries i of the keys in [first_key, i]."""
    return _triangle(queries[1] - first_key) - _triangle(queries[0] - first_key)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2 if n > 0 else 0


def total_pairs(seq_len: int, causal: bool = True) -> int:
    """Score pairs of the whole sequence.

    Args:
        seq_len: Tokens of the sequence, N.
        causal: Whether attention is causal.

    Returns:
        N(N+1)/2 if causal, N^2 if not.
    """
    return _triangle(seq_len) if causal else seq_len * seq_len


def shard_pairs(layout: str, seq_len: int, offset: int, length: int, causal: bool = True) -> int:
    """Score pairs of a shard.

    For zigzag and causal this is length * (seq_len + 1) / 2 where offset and length are even, whatever the shares: work
    is linear in tokens.

    Args:
        layout: "contiguous" or "zigzag".
        seq_len: Tokens of the sequence.
        offset: Tokens that the shards before this one hold together.
        length: Tokens of the shard.
        causal: Whether attention is causal.

    Returns:
        The number of pairs.
    """
    if not causal:
        return length * seq_len
    return sum(causal_pairs(span, (0, seq_len)) for span in shard_spans(layout, seq_len, offset, length))


def score_pairs(partition: Partition, causal: bool = True, prefix_lens: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Score pairs that each rank computes.

    In zigzag, rank r computes n_r (M + (N+1)/2) for M earlier tokens: linear in tokens, with a prefix, too.

    Args:
        partition: Which tokens each rank holds.
        causal: Whether attention is causal.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Pairs by rank.
    """
    return tuple(
        shard_pairs(partition.layout, partition.seq_len, offset, length, causal) + length * sum(prefix_lens)
        for offset, length in zip(partition.offsets, partition.block_lens, strict=True)
    )


def step_pairs(partition: Partition, q_rank: int, kv_rank: int, causal: bool = True) -> int:
    """Score pairs between the queries of one rank and the keys of one rank.

    Args:
        partition: Which tokens each rank holds.
        q_rank: The rank of the queries.
        kv_rank: The rank of the keys.
        causal: Whether attention is causal.

    Returns:
        The number of pairs.
    """
    if not causal:
        return partition.block_lens[q_rank] * partition.block_lens[kv_rank]
    return sum(causal_pairs(queries, keys) for queries in partition.spans(q_rank) for keys in partition.spans(kv_rank))


def shard_extra_rows(layout: str, offset: int, length: int, in_front: int, behind: int, causal: bool = True) -> int:
    """Query rows in the ring steps of a shard, other than the step over its own KV.

    All rows attend to each rank in front. If not causal, all rows attend to each rank behind, too; if causal, only
    those of the tail do in zigzag, and none in contiguous.

    Args:
        layout: "contiguous" or "zigzag".
        offset: Tokens that the shards before this one hold together.
        length: Tokens of the shard.
        in_front: Other ranks that hold tokens in front of it, and those behind it that hold earlier tokens.
        behind: Other ranks that hold tokens behind it.
        causal: Whether attention is causal.

    Returns:
        Rows, counted once per step.
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

    Args:
        partition: Which tokens each rank holds.
        causal: Whether attention is causal.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Rows by rank.
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
    """Those of `extra_rows` in the first rectangle of ring step 1, with the KV of the rank before.

    Args:
        partition: Which tokens each rank holds.
        causal: Whether attention is causal.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Rows by rank.
    """
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
    """Floating-point operations of score pairs: two matrix products, 2 operations per term.

    Args:
        batch: Sequences.
        heads: Query heads.
        head_dim: Elements of a head.
        pairs: Score pairs of one head.

    Returns:
        Operations of all sequences and heads.
    """
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
    """Bytes of keys and values that a rank receives in one call of pass-KV ring attention.

    Args:
        partition: Which tokens each rank holds.
        rank: The rank, from 0.
        batch: Sequences.
        kv_heads: Heads of keys and values.
        head_dim: Elements of a head.
        itemsize: Bytes of an element.
        causal: Whether attention is causal.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Bytes.
    """
    steps = ring_steps(partition, rank, causal, prefix_lens)
    tokens = sum(step.keys for step in steps if step.kv_rank != rank)
    return 2 * tokens * batch * kv_heads * head_dim * itemsize


def pass_q_pairs(partition: Partition, causal: bool = True, prefix_lens: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Score pairs that each rank computes in pass-Q, of its own keys with all queries.

    Args:
        partition: Which tokens each rank holds.
        causal: Whether attention is causal.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Pairs by rank; their sum is that of `score_pairs`.
    """
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
    """Bytes that a rank receives in one call of pass-Q: queries for its keys, and partial results for its queries.

    Partial results are an output and an LSE in fp32 (fp64 for fp64 inputs) from each other rank that holds keys.

    Args:
        partition: Which tokens each rank holds.
        rank: The rank, from 0.
        batch: Sequences.
        heads: Query heads.
        head_dim: Elements of a head.
        itemsize: Bytes of an element of the queries.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Bytes.
    """
    lens = partition.block_lens
    holders = [length + before > 0 for length, before in zip(lens, prefix_lens or (0,) * len(lens), strict=True)]
    queries = (partition.seq_len - lens[rank]) * holders[rank]
    parts = lens[rank] * (sum(holders) - holders[rank])
    return batch * heads * (queries * head_dim * itemsize + parts * (head_dim + 1) * max(4, itemsize))


def ring_time(partition: Partition, alone: Sequence[float], causal: bool = True) -> float:
    """Time of the slowest rank if every rank computes its score pairs at its own speed and nothing else takes time.

    Args:
        partition: Which tokens each rank holds.
        alone: The time that each rank alone needs for the whole sequence, in rank order.
        causal: Whether attention is causal.

    Returns:
        The time, in the unit of `alone`.
    """
    pairs = score_pairs(partition, causal)
    return max(share * time for share, time in zip(pairs, alone, strict=True)) / sum(pairs)
