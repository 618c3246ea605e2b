"""The allocator `uneven`: tokens in proportion to each rank's nominal percentage."""

from collections.abc import Sequence

from heteroring.allocators.apportion import apportion


def uneven(seq_len: int, percentages: Sequence[float]) -> tuple[int, ...]:
    """`seq_len` tokens in proportion to nominal `percentages` (1 to 100): the published uneven split."""
    return apportion(percentages, seq_len)
