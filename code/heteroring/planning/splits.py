"""Splits over a fleet by known costs, for plans and simulations; `allocate` splits by percentages and profiles."""

from __future__ import annotations

from collections.abc import Sequence

from heteroring.allocators.apportion import apportion
from heteroring.allocators.balanced import balanced
from heteroring.allocators.even import even
from heteroring.allocators.unit_costs import Cost
from heteroring.ring.bounds import two_kind_bound
from heteroring.ring.workload import total_pairs

SPLITS = ("even", "proportional", "balanced")


def alone_us(costs: Sequence[Cost], seq_len: int, earlier: int = 0) -> list[float]:
    """Microseconds that each rank alone would take for one layer.

    Args:
        costs: Microseconds of each kind of work, by rank.
        seq_len: New tokens.
        earlier: Tokens before them, which they all see.

    Returns:
        Microseconds by rank.
    """
    pairs = total_pairs(seq_len) + seq_len * earlier
    return [cost.pair_us * pairs + cost.token_us * seq_len for cost in costs]


def coarse(seq_len: int, ranks: int, multiple: int) -> tuple[str, ...]:
    """A note where `balanced` has too few multiples to give out for shares to differ by much.

    Args:
        seq_len: Tokens to split.
        ranks: Number of ranks.
        multiple: Tokens that are given out at a time.

    Returns:
        The note, or ().
    """
    if multiple == 1 or seq_len >= 2 * multiple * ranks:
        return ()
    return (f"balanced gives out {multiple} tokens at a time: {seq_len // multiple} times for {ranks} ranks",)


def split(
    name: str, seq_len: int, costs: Sequence[Cost], layout: str, multiple: int, prefix_lens: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Tokens of each rank by a split of a name.

    Args:
        name: One of SPLITS; `proportional` is to the speed of each rank alone.
        seq_len: Tokens to split.
        costs: Microseconds of each kind of work, by rank.
        layout: "contiguous" or "zigzag", which only `balanced` depends on.
        multiple: Tokens that `balanced` gives out at a time; it divides `seq_len`.
        prefix_lens: Earlier tokens by rank, which all tokens see; () for none.

    Returns:
        Tokens by rank, summing to `seq_len`.

    Raises:
        ValueError: For a name that is not one of SPLITS.
    """
    if name not in SPLITS:
        raise ValueError(f"split {name!r} is unknown: choose one of {', '.join(SPLITS)}")
    if name == "even":
        return even(seq_len, len(costs))
    if name == "proportional":
        return apportion([1 / each for each in alone_us(costs, seq_len, sum(prefix_lens))], seq_len)
    return balanced(seq_len, costs, layout, multiple=multiple, prefix_lens=prefix_lens)


def bound(costs: Sequence[Cost], seq_len: int, earlier: int = 0) -> float:
    """Least microseconds of one layer over these ranks, however its pairs and products are shared out.

    Args:
        costs: Microseconds of each kind of work, by rank.
        seq_len: New tokens.
        earlier: Tokens before them, which they all see.

    Returns:
        Microseconds (`two_kind_bound`).
    """
    pairs = total_pairs(seq_len) + seq_len * earlier
    return two_kind_bound([cost.pair_us * pairs for cost in costs], [cost.token_us * seq_len for cost in costs])
