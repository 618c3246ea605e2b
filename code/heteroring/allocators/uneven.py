"""The allocator `uneven`: tokens in proportion to each rank's nominal percentage."""

from collections.abc import Sequence

from heteroring.allocators.apportion import apportion


def uneven(seq_len: int, percentages: Sequence[float]) -> tuple[int, ...]:
    """Split tokens in proportion to nominal percentages: the published uneven split.

    Args:
        seq_len: Tokens to split.
        percentages: Nominal speed of each rank in percent, 1 to 100, in rank order.

    Returns:
        Tokens per rank, summing to `seq_len`.
    """
    return apportion(percentages, seq_len)
