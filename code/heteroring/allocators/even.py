"""The allocator `even`: the same number of tokens for every rank."""

from heteroring.allocators.apportion import apportion


def even(seq_len: int, world_size: int) -> tuple[int, ...]:
    """`seq_len` tokens over `world_size` ranks, equal to within one token, longer shards first."""
    return apportion([1] * world_size, seq_len)
