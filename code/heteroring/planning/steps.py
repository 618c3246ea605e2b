"""The work of every rank in every ring step of causal attention, as arrays over all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from heteroring.allocators.unit_costs import Cost
from heteroring.ring.partition import Partition


class Step(NamedTuple):
    """One ring step, by rank: score pairs, query rows that meet KV, keys that come from `owner`. All [ranks].

    Where some rows meet the owner's earlier tokens alone, there is a second rectangle (`RingStep.rectangles`), of
    `later_rows` rows and `later_pairs` of the pairs; elsewhere both are 0.
    """

    owner: np.ndarray
    pairs: np.ndarray
    rows: np.ndarray
    keys: np.ndarray
    later_rows: np.ndarray
    later_pairs: np.ndarray


def steps(partition: Partition, tile: int = 1, prefix_lens: Sequence[int] = ()) -> Iterator[Step]:
    """The ring steps of a causal call, the own KV first; the numbers of `heteroring.ring.schedule.ring_steps`.

    Args:
        partition: Which tokens each rank holds.
        tile: Queries and keys of a tile of the kernel: pairs are those of whole tiles, since one that is not full takes
            as long as a full one.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Yields:
        Each step, as arrays over all ranks.
    """

    def whole(count: np.ndarray) -> np.ndarray:
        return -(-count // tile) * tile

    lens = np.array(partition.block_lens, dtype=np.int64)
    earlier = np.array(prefix_lens or [0] * len(lens), dtype=np.int64)
    ranks, none = np.arange(len(lens)), np.zeros_like(lens)
    stops = np.cumsum(lens)
    zigzag = partition.layout == "zigzag"
    heads = stops // 2 - (stops - lens) // 2 if zigzag else lens
    tails = lens - heads
    own = whole(lens) * (whole(lens) + 1) // 2 + whole(lens) * whole(earlier)
    yield Step(ranks, own, lens, none, none, none)
    whole_lens, whole_heads, whole_tails = map(whole, (lens, heads, tails))
    for step in range(1, len(lens)):
        # The first `step` ranks meet owners behind them, the others owners in front.
        owner = np.concatenate((ranks[-step:], ranks[:-step]))
        rows, keys = np.concatenate((tails[:step], lens[step:])), np.concatenate((lens[-step:], heads[:-step]))
        met = (rows > 0) & (keys > 0)
        rows, keys = rows * met, keys * met
        if not prefix_lens:
            whole_rows = np.concatenate((whole_tails[:step], whole_lens[step:]))
            whole_keys = np.concatenate((whole_lens[-step:], whole_heads[:-step]))
            yield Step(owner, whole_rows * whole_keys, rows, keys, none, none)
            continue
        before = np.where(lens > 0, earlier[owner], 0)
        apart = met & (before > 0) & (rows < lens)
        later_rows, later_pairs = rows * apart, whole(rows) * whole(keys) * apart
        rows = np.where(before > 0, lens, rows)
        pairs = whole(rows) * whole(before + np.where(apart, 0, keys)) + later_pairs
        yield Step(owner, pairs, rows, before + keys, later_rows, later_pairs)


class Costs(NamedTuple):
    """The costs of all ranks, by name: each [ranks]."""

    pair_us: np.ndarray
    token_us: np.ndarray
    revisit_us: np.ndarray
    join_us: np.ndarray

    @classmethod
    def of(cls, costs: Sequence[Cost]) -> Costs:
        return cls(*np.array(costs, dtype=float).T)


def step_us(step: Step, number: int, costs: Costs) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of each rank's compute in one ring step.

    Args:
        step: The step.
        number: Its number, from 0.
        costs: The costs of all ranks.

    Returns:
        Microseconds [ranks] of the whole step, and those of its second rectangle among them [ranks].
    """
    row_us = (0.0, costs.join_us, costs.revisit_us)[min(number, 2)]
    later = costs.pair_us * step.later_pairs + costs.revisit_us * step.later_rows
    return costs.pair_us * (step.pairs - step.later_pairs) + row_us * step.rows + later, later
