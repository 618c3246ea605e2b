"""The allocator `even`: the same number of tokens for every rank."""

from heteroring.allocators.apportion import apportion


def even(seq_len: int, world_size: int) -> tuple[int, ...]:
    """Split tokens evenly, to within one token, longer shards first.

    Args:
        seq_len: Tokens to split.
        world_size: Number of ranks.

    Returns:
        Tokens per rank, summing to `seq_len`.
    """
    return apportion([1] * world_size, seq_len)
