"""What every rank does in every ring step of causal attention, for any number of ranks at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from heteroring.allocators.costs import Cost
from heteroring.ring.partition import Partition


class Step(NamedTuple):
    """One ring step, by rank: score pairs, query rows that meet KV, keys that come from `owner`. All [ranks]."""

    owner: np.ndarray
    pairs: np.ndarray
    rows: np.ndarray
    keys: np.ndarray


def steps(partition: Partition, tile: int = 1) -> Iterator[Step]:
    """The ring steps of a causal call, the own KV first; the numbers of `heteroring.ring.schedule.ring_steps`.

    With a `tile`, pairs are those that a kernel computes in tiles of so many queries and keys, which takes as long for
    one that is not full.
    """

    def whole(count: np.ndarray) -> np.ndarray:
        return -(-count // tile) * tile

    lens = np.array(partition.block_lens, dtype=np.int64)
    ranks = np.arange(len(lens))
    stops = np.cumsum(lens)
    zigzag = partition.layout == "zigzag"
    heads = stops // 2 - (stops - lens) // 2 if zigzag else lens
    tails = lens - heads
    yield Step(ranks, whole(lens) * (whole(lens) + 1) // 2, lens, np.zeros_like(lens))
    for step in range(1, len(lens)):
        owner = (ranks - step) % len(lens)
        in_front = owner < ranks
        rows, keys = np.where(in_front, lens, tails), np.where(in_front, heads[owner], lens[owner])
        met = (rows > 0) & (keys > 0)
        rows, keys = rows * met, keys * met
        yield Step(owner, whole(rows) * whole(keys), rows, keys)


class Costs(NamedTuple):
    """The costs of all ranks, by name: each [ranks]."""

    pair_us: np.ndarray
    token_us: np.ndarray
    rerow_us: np.ndarray
    join_us: np.ndarray

    @classmethod
    def of(cls, costs: Sequence[Cost]) -> Costs:
        return cls(*np.array(costs, dtype=float).T)


def step_us(step: Step, number: int, costs: Costs) -> np.ndarray:
    """Microseconds that each rank computes in ring step `number`: [ranks]."""
    row_us = (0.0, costs.join_us, costs.rerow_us)[min(number, 2)]
    return costs.pair_us * step.pairs + row_us * step.rows
