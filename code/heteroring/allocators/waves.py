"""Whole waves: the time of a rank's kernels from their grids of tiles, which SMs take one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import heappush, heapreplace
from itertools import groupby
from typing import Self

from heteroring.allocators.unit_costs import Cost
from heteroring.kernels import launch_configs
from heteroring.ring.partition import Partition
from heteroring.ring.schedule import ring_steps
from heteroring.ring.workload import total_pairs

BLOCK_M = launch_configs.HOPPER_BLOCK_M
# The start and end of a tile of queries, as a fraction of those of a tile whose result is merged into an earlier one.
# With it, the recorded attention calls of 8,192 to 32,768 tokens take the same time per tile within 1.5 % at every
# share of an H200.
UNMERGED = 0.8
# How many multiples of tokens may be moved at a time.
FURTHEST = 4
# Waves are counted for rings of at most MOST_RANKS ranks. Where every rank has more than MOST_WAVES of them, the last
# wave, which may not be full, does not matter.
MOST_RANKS = 4
MOST_WAVES = 64


@dataclass(frozen=True)
class KernelGrid:
    """The Hopper kernel's programs on a device of `sms` SMs, each of which runs one program at a time.

    A program computes BLOCK_M queries of one of `heads` heads (those of all sequences of a batch), `group` of which
    share keys of `head_dim` elements of `itemsize` bytes. Times are counted in tiles of keys; `edge` is what the start
    and end of a program take, `merge` what it takes to merge its result into an earlier one.
    """

    sms: int
    heads: int
    group: int
    head_dim: int
    itemsize: int
    edge: float
    merge: float

    @classmethod
    def of(cls, cost: Cost, seq_len: int, sms: int, setup: Mapping[str, str]) -> Self | None:
        """The grid of a rank for calls of a model's setup.

        Args:
            cost: The rank's cost at `seq_len`.
            seq_len: Tokens of the whole sequence.
            sms: SMs of the rank.
            setup: dtype, batch, heads, kv_heads and head_dim of the profile, as text.

        Returns:
            The grid; None where the Hopper kernel does not take such operands (16 bits, heads up to 256 elements).
        """
        heads, kv_heads, head_dim = (int(setup[name]) for name in ("heads", "kv_heads", "head_dim"))
        config = launch_configs.HOPPER.get(launch_configs.padded(head_dim))
        if config is None or setup["dtype"] not in ("bfloat16", "float16"):
            return None
        grid = cls(sms, heads * int(setup["batch"]), heads // kv_heads, head_dim, 2, 4.0, 1.0)
        # A ring step of all rows over one tile of keys: so many programs one after the other on each SM.
        tile_step_us = seq_len * (cost.revisit_us + config.block_n * cost.pair_us)
        waves = -(-grid.heads * -(-seq_len // BLOCK_M) // sms)
        for _ in range(4):  # the time of a tile depends a little on the assumed time of edges
            merged = max(0.0, tile_step_us / (waves * grid.tile_us(cost, seq_len)) - 1)
            grid = replace(grid, edge=UNMERGED * merged, merge=(1 - UNMERGED) * merged)
        return grid

    def tile_us(self, cost: Cost, seq_len: int) -> float:
        """Microseconds of one tile of keys.

        Args:
            cost: The rank's cost: the whole sequence alone takes its pair_us for each pair.
            seq_len: Tokens of the whole sequence.

        Returns:
            Microseconds.
        """
        return cost.pair_us * total_pairs(seq_len) / self.time(seq_len, seq_len, True)

    @property
    def block_n(self) -> int:
        """Keys of a tile."""
        return launch_configs.HOPPER[launch_configs.padded(self.head_dim)].block_n

    def time(
        self, rows: int, keys: int, causal: bool, *, pending: int = 0, first_query: int = 0, merged: bool = False
    ) -> float:
        """Time of one launch of the kernel.

        Args:
            rows: Queries.
            keys: Keys that they meet; if `causal`, the last `rows` of them are the queries' own.
            causal: Whether a query sees only keys up to its own.
            pending: Further keys of the same launch, as in the fused first step.
            first_query: The first query that meets the pending keys.
            merged: Whether the result is merged into an earlier one.

        Returns:
            The time, in tiles of keys.
        """
        return _makespan(self, rows, keys, causal, pending, first_query, merged)

    def batches(
        self, rows: int, keys: int, causal: bool, pending: int, first_query: int, merged: bool
    ) -> Iterator[tuple[float, int]]:
        """The programs of one launch; the arguments are those of `time`.

        Yields:
            Time of a program in tiles of keys, and how many like it follow one another, in the order in which they
            start.
        """
        lead = launch_configs.lead(rows, pending, first_query)
        programs = -(-(rows + lead) // BLOCK_M)
        section = launch_configs.section(self.heads, self.group, keys + pending, self.head_dim, self.itemsize)
        waiting = max(1, -(-(rows - first_query) // BLOCK_M))
        first = launch_configs.first_section(section, self.group, waiting, self.sms) if pending else 0
        start, block_n = self.edge + self.merge * merged, self.block_n
        dense, more = -(-keys // block_n), -(-pending // block_n)

        def time(program: int) -> float:
            stop = min((program + 1) * BLOCK_M - lead, rows)
            tiles = -(-(keys - rows + stop) // block_n) if causal else dense
            return start + tiles + more * (stop > first_query)

        alike = [(each, len(list(run))) for each, run in groupby(map(time, reversed(range(programs))))]
        for width in launch_configs.sections(self.heads, first, section):
            for each, count in alike:
                yield each, count * width


@lru_cache(maxsize=65536)
def _makespan(
    grid: KernelGrid, rows: int, keys: int, causal: bool, pending: int, first_query: int, merged: bool
) -> float:
    """The time at which the last program ends, if each goes to the SM that is free first."""
    free = [(0.0, grid.sms)]  # a heap of times, and how many SMs are free then
    for time, count in grid.batches(rows, keys, causal, pending, first_query, merged):
        while count:
            begin, sms = free[0]
            if count < sms:
                free[0] = (begin, sms - count)
                heappush(free, (begin + time, count))
                break
            heapreplace(free, (begin + time, sms))
            count -= sms
    return max(free)[0]


def step_us(
    partition: Partition,
    rank: int,
    cost: Cost,
    grid: KernelGrid,
    fused: bool = True,
    prefix_lens: tuple[int, ...] = (),
) -> dict[int, float]:
    """Microseconds that a rank computes in each of its ring steps of a causal call.

    Args:
        partition: Which tokens each rank holds.
        rank: The rank, from 0.
        cost: The rank's cost: the whole sequence alone, earlier tokens included, takes its pair_us for each pair.
        grid: The rank's grid.
        fused: Whether the first two steps are one launch; the second then takes what that launch adds to the first.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Microseconds by index of the step.
    """
    tile_us = grid.tile_us(cost, partition.seq_len + sum(prefix_lens))
    steps = {step.index: step for step in ring_steps(partition, rank, True, prefix_lens)}
    rows, found = partition.block_lens[rank], {}
    for index, step in steps.items():
        later = list(step.rectangles)
        if index == 0:
            found[0] = grid.time(rows, step.keys, True)
            continue
        found[index] = 0.0
        if index == 1 and fused and 0 in steps:
            first_query, _, pending = later.pop(0)
            whole = grid.time(rows, steps[0].keys, True, pending=pending, first_query=first_query)
            found[1] = whole - found[0]
        for first_query, first_key, end in later:
            found[index] += grid.time(rows - first_query, end - first_key, False, merged=True)
    return {index: tile_us * tiles for index, tiles in found.items()}


def busy_us(
    partition: Partition, costs: Sequence[Cost], grids: Sequence[KernelGrid], prefix_lens: tuple[int, ...] = ()
) -> list[float]:
    """Microseconds that each rank is busy in one causal call, its tokens' other work included.

    Args:
        partition: Which tokens each rank holds.
        costs: Microseconds of each kind of work, by rank.
        grids: The ranks' grids.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Microseconds by rank.
    """
    return [
        cost.token_us * partition.block_lens[rank]
        + sum(step_us(partition, rank, cost, grid, prefix_lens=prefix_lens).values())
        for rank, (cost, grid) in enumerate(zip(costs, grids, strict=True))
    ]


def in_whole_waves(
    block_lens: Sequence[int],
    costs: Sequence[Cost],
    grids: Sequence[KernelGrid],
    layout: str,
    multiple: int,
    prefix_lens: tuple[int, ...] = (),
) -> tuple[int, ...]:
    """Move tokens from or to the slowest rank for as long as that makes the ring faster.

    SMs that are idle in the last wave would compute more tiles in the same time, so a rank may be done no later with
    more tokens, or much earlier with a few less. Up to FURTHEST multiples move at a time, and what `multiple` does not
    divide goes to any rank. Ranks without tokens get none.

    Args:
        block_lens: Tokens per rank to begin with.
        costs: Microseconds of each kind of work, by rank.
        grids: The ranks' grids.
        layout: "contiguous" or "zigzag".
        multiple: Tokens that are moved at a time.
        prefix_lens: Earlier tokens that each rank holds and all tokens see; () for none.

    Returns:
        Tokens per rank.
    """
    lens = tuple(block_lens)
    holders = [rank for rank, length in enumerate(lens) if length]
    while True:
        busy = busy_us(Partition(layout, lens), costs, grids, prefix_lens)
        others = _others(lens, holders, busy.index(max(busy)), multiple)
        tried = [(max(busy_us(Partition(layout, other), costs, grids, prefix_lens)), other) for other in others]
        fastest, best = min(tried, default=(max(busy), lens))
        if fastest >= max(busy):
            return lens
        lens = best


def _others(lens: Sequence[int], holders: Sequence[int], slowest: int, multiple: int) -> set[tuple[int, ...]]:
    """`lens` after each move from or to the slowest rank, with the tokens beyond multiples on each rank in turn."""
    left_over = sum(lens) % multiple
    whole = [length // multiple for length in lens]
    found = set()
    for other in holders:
        for count in range(-FURTHEST, FURTHEST + 1):
            units = list(whole)
            units[slowest] += count
            units[other] -= count
            for takes in holders:
                moved = tuple(multiple * n + left_over * (rank == takes) for rank, n in enumerate(units))
                if all(moved[rank] > 0 for rank in holders):
                    found.add(moved)
    return found
