"""Rounding of real shares to whole tokens that sum to the sequence, or to each chunk of it."""

import math
from collections.abc import Sequence
from fractions import Fraction

from heteroring.ring.partition import Partition


def apportion(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Split a whole number into integers in proportion to weights, by largest remainder.

    Every part gets its quota, total * weight / sum(weights), rounded down; the units left over go to the largest
    remainders, equal remainders in index order. Quotas are exact fractions. So each part is within 1 of its quota, and
    a larger weight never gets less.

    Args:
        weights: Each 0 or more and finite, not all 0.
        total: What is split, 0 or more.

    Returns:
        The parts, in the order of the weights, summing to `total`.

    Raises:
        ValueError: If a weight is negative or not finite, if all are 0, or if `total` is negative.
    """
    for index, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight {index} is {weight}: a weight is finite and not negative")
    shares = [Fraction(float(weight)) for weight in weights]
    whole = sum(shares)
    if whole == 0:
        raise ValueError(f"weights {tuple(weights)} sum to 0: nothing can be shared in proportion to them")
    if total < 0:
        raise ValueError(f"total is {total}: it must not be negative")

    quotas = [total * share / whole for share in shares]
    parts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - quotas[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return tuple(parts)


def chunks_of(partition: Partition, chunk: int | None) -> list[Partition]:
    """Lay out each chunk of a prompt over the ranks, in the shares of the whole prompt.

    Each chunk takes tokens from every rank in proportion to what that rank has left.

    Args:
        partition: Partition of the whole prompt.
        chunk: Tokens of a chunk; None for the whole prompt.

    Returns:
        The partition of each chunk, in order.
    """
    left, found = list(partition.block_lens), []
    while any(left):
        lens = apportion(left, min(chunk or partition.seq_len, sum(left)))
        found.append(Partition(partition.layout, lens))
        left = [each - taken for each, taken in zip(left, lens, strict=True)]
    return found
