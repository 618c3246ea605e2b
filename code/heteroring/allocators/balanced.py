"""The allocator `balanced`: the split whose predicted slowest rank is fastest, among the ranks that it uses."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from heteroring.allocators.costs import Cost, check_costs
from heteroring.ring.partition import check_layout
from heteroring.ring.workload import shard_extra_rows, shard_pairs, total_pairs

# What a ring must be predicted to gain on its fastest rank alone to be worth having, in time and in parts of its time.
# The model knows what ranks compute, not what they wait for: until the first keys come, a rank on two H200s waited for
# up to 90 us (docs/experiments/ring.md).
RING_MARGIN = 0.03
RING_WAIT_US = 60.0

# Borders are floats in the search for the limit, and whole.
LONGEST = 2**53

# How near the least limit is found, in parts of it.
TOLERANCE = 1e-12
# How many fills NumPy does at once in not much more time than one.
FILLS = 256
# Every how many sizes of a ring are searched before all are.
STRIDE = 16

Fill = Callable[[int, int, np.ndarray, np.ndarray], np.ndarray]


def balanced(
    seq_len: int,
    costs: Sequence[Cost],
    layout: str = "zigzag",
    causal: bool = True,
    *,
    multiple: int = 1,
    margin: float = 0.0,
    wait_us: float = 0.0,
) -> tuple[int, ...]:
    """Tokens per rank, whole multiples of `multiple`, that minimise the predicted time of the slowest rank.

    A rank's time is that of `predicted_ms`: pair_us per score pair, token_us per token, and revisit_us (join_us in ring
    step 1) per query row in each step beyond its own KV, of which there are the more, the more ranks hold tokens.
    So a rank may cost the others more than it brings, and leaving it out is considered: once for every number of
    ranks, always the fastest ones, as measured by the whole sequence alone. Over these sets of ranks the split is the
    best there is, to 1 part in 10^11; of three ranks or more, another set may do better where a fast one's steps or
    tokens are dear. If one rank alone needs no more than 1 + `margin` times the time of the best split, and
    `wait_us` more, it gets all tokens.

    For a set of ranks that hold tokens, a rank's time for tokens [start, stop) in rank order grows with stop and falls
    as start grows. So if each rank in turn takes all it can finish within a limit, no other split gets further within
    it: the limit is feasible exactly if this greedy fill reaches `seq_len`. The least feasible limit of all sets is
    sought for many sets and limits at once. Many splits may attain it; each border goes as near as that limit allows
    to where speed-proportional work would put it, which leaves the ranks below the limit balanced too.

    Raises ValueError if the layout is unknown, `seq_len` is above LONGEST, `multiple` does not divide it, there are no
    costs, or one is negative, not finite, or nothing for a score pair.
    """
    check_layout(layout)
    check_costs(costs)
    if seq_len > LONGEST:
        raise ValueError(f"seq_len is {seq_len}: balanced shares out {LONGEST} tokens at most")
    if multiple < 1 or seq_len % multiple:
        raise ValueError(f"multiple is {multiple}: it must be 1 or more and divide seq_len {seq_len}")
    pairs = total_pairs(seq_len, causal)
    alone = [cost.pair_us * pairs + cost.token_us * seq_len for cost in costs]
    fastest_first = sorted(range(len(costs)), key=alone.__getitem__)
    fastest = fastest_first[0]
    if not math.isfinite(alone[fastest]):
        raise ValueError(
            f"seq_len {seq_len} takes rank {fastest}, the fastest, more microseconds than a float can hold"
        )

    sizes = np.arange(1, len(costs) + 1)
    with np.errstate(over="ignore", invalid="ignore"):  # of ranks that would need for ever, and of limits far too long
        rings = _Rings(seq_len, costs, fastest_first, layout, causal, multiple)
        limit, size = rings.least_limit(sizes, alone[fastest] * (1 + TOLERANCE))
    if (margin or wait_us) and alone[fastest] <= (1 + margin) * limit + wait_us:
        return tuple(seq_len * (rank == fastest) for rank in range(len(costs)))
    ring = _Ring(tuple(sorted(fastest_first[:size])), seq_len, tuple(costs), layout, causal, multiple)
    return ring.split(limit * (1 + TOLERANCE))


class _Rings:
    """The rings of the fastest ranks, one of every size. Borders count multiples from the front.

    A greedy fill goes rank by rank; NumPy takes each of these steps for many rings and limits at once.
    """

    def __init__(
        self,
        seq_len: int,
        costs: Sequence[Cost],
        fastest_first: Sequence[int],
        layout: str,
        causal: bool,
        multiple: int,
    ) -> None:
        self.seq_len, self.layout, self.causal, self.multiple = seq_len, layout, causal, multiple
        self.costs = Cost(*np.array(costs, dtype=float).T[:, :, None])  # each [ranks, 1]
        self.place = np.argsort(fastest_first)[:, None]  # of every rank among the fastest

    def least_limit(self, sizes: np.ndarray, upper: float, tolerance: float = TOLERANCE) -> tuple[float, int]:
        """The least limit, but for `tolerance`, that a ring of ascending `sizes` keeps, and the largest that keeps it.

        `upper` is a limit that one of them keeps. Rings of similar size are similarly fast: of many, every STRIDE-th is
        searched first, and then those that are no slower than the best of these.
        """
        if len(sizes) > STRIDE:
            upper, _ = self.least_limit(sizes[::STRIDE], upper, tolerance=1e-3)
        lower = 0.0
        while upper - lower > tolerance * upper:
            limits = np.linspace(lower, upper, max(2, FILLS // len(sizes)) + 1)
            kept = self.kept(sizes, limits[1:])
            least = int(kept.any(axis=0).argmax())
            lower, upper = map(float, limits[least : least + 2])
            sizes = sizes[kept[:, least]]
        return upper, int(sizes[-1])

    def kept(self, sizes: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """Whether the rings keep the limits, [sizes, limits]: whether the greedy fill reaches the end."""
        end = self.seq_len // self.multiple
        borders = np.zeros((len(sizes), len(limits)))
        holders = np.searchsorted(sizes, self.place[:, 0], side="right")  # rings from this one on hold the rank
        fill = self._filler(sizes)
        for rank, first in enumerate(holders):
            if first < len(sizes):
                borders[first:] = np.minimum(fill(rank, first, borders[first:], limits), end)
        return borders == end

    def _filler(self, sizes: np.ndarray) -> Fill:
        """How far a rank gets: `_Ring.time` solved for the border behind, which may come out beyond the end.

        The function takes a rank, the first of the rings that hold it, its borders there [rings, limits], and limits.
        """
        seq_len, step = self.seq_len, self.multiple
        cost: Any = self.costs  # its fields are arrays
        member = self.place < sizes
        in_front: np.ndarray = np.cumsum(member, axis=0) - member
        behind = sizes - 1 - in_front
        # Ring step 1 has the KV of the rank before, which is in front of all ranks but rank 0.
        first = np.roll(member, 1, axis=0) & (sizes > 1)
        rank_0 = np.arange(len(member))[:, None] == 0
        saved_us = cost.revisit_us - cost.join_us
        # A row's ring steps with all ranks in front, and with all ranks behind, for the rows that take part in them.
        front_us = cost.revisit_us * in_front - saved_us * (first & ~rank_0)
        behind_us = cost.revisit_us * behind - saved_us * (first & rank_0)

        if self.causal and self.layout == "contiguous":
            # A token has as many pairs as tokens are in front of it: a quadratic equation.
            token_us = cost.pair_us / 2 + cost.token_us + front_us

            def fill(rank: int, ring: int, border: np.ndarray, limit: np.ndarray) -> np.ndarray:
                slope = token_us[rank, ring:, None] + cost.pair_us[rank] * step * border
                tokens = limit / slope
                tokens = 2 * tokens / (1 + np.sqrt(1 + 2 * cost.pair_us[rank] * tokens / slope))
                return border + np.floor(tokens / step)

            return fill

        if self.causal:
            step_us = step * (cost.pair_us * (seq_len + 1) / 2 + cost.token_us + front_us + behind_us / 2)
        else:
            step_us = step * (cost.pair_us * seq_len + cost.token_us + front_us + behind_us)
        if not self.causal or step % 2 == 0:
            return lambda rank, ring, border, limit: border + np.floor(limit / step_us[rank, ring:, None])

        # Zigzag by odd steps. Two steps from an even border take as long as any other two; of the two, the first
        # holds the one token more in the tail, and this token's pairs, which are the fewer, the further inside it is.
        two_us = 2 * step_us
        first_us = step_us + (cost.pair_us * (seq_len - step) + behind_us) / 2
        less_us = cost.pair_us * step / 2

        def fill_oddly(rank: int, ring: int, border: np.ndarray, limit: np.ndarray) -> np.ndarray:
            two, one, less = two_us[rank, ring:, None], first_us[rank, ring:, None], less_us[rank]
            begun = border % 2
            border = border - begun
            left = limit + begun * (one - less * border)
            twos = np.floor(left / two)
            border = border + 2 * twos
            return border + (one - less * border <= left - twos * two)

        return fill_oddly


@dataclass(frozen=True)
class _Ring:
    """Some of the ranks, in rank order, each reckoned to hold tokens. Borders count multiples from the front."""

    members: tuple[int, ...]
    seq_len: int
    costs: tuple[Cost, ...]
    layout: str
    causal: bool
    multiple: int

    @property
    def end(self) -> int:
        return self.seq_len // self.multiple

    def time(self, place: int, start: int, stop: int) -> float:
        """Microseconds of the member at `place` for what lies between two borders."""
        cost = self.costs[self.members[place]]
        offset, length = start * self.multiple, (stop - start) * self.multiple
        pairs = shard_pairs(self.layout, self.seq_len, offset, length, self.causal)
        behind = len(self.members) - 1 - place
        rows = shard_extra_rows(self.layout, offset, length, place, behind, self.causal)
        joined = shard_extra_rows(self.layout, offset, length, *self.met_first(place), self.causal)
        return cost.time_us(pairs, length, rows, joined)

    def met_first(self, place: int) -> tuple[int, int]:
        """How many members a member meets in the ring's first step, in front of and behind it: one at most."""
        rank, before = self.members[place], self.members[place - 1]
        meets = before != rank and before == (rank - 1) % len(self.costs)
        return int(meets and rank > 0), int(meets and rank == 0)

    def last_stop(self, place: int, start: int, limit: float) -> int:
        stops = range(self.end + 1)
        return bisect_right(stops, limit, lo=start, key=lambda stop: self.time(place, start, stop)) - 1

    def first_start(self, place: int, stop: int, limit: float) -> int:
        # Time falls as the start rises, and bisection wants a rising key: hence the signs.
        return bisect_left(range(stop), -limit, key=lambda start: -self.time(place, start, stop))

    def split(self, limit: float) -> tuple[int, ...]:
        """Tokens of every rank, within a feasible limit."""
        places = range(len(self.members))
        earliest = [self.end]
        for place in reversed(places):
            earliest.append(self.first_start(place, earliest[-1], limit))
        earliest.reverse()

        shares = list(accumulate(1 / self.time(place, 0, self.end) for place in places))
        lens = [0] * len(self.costs)
        border = 0
        for place in places:
            share = shares[place] / shares[-1]
            ideal = bisect_left(range(self.end), total_pairs(self.seq_len, self.causal) * share, key=self._pairs_before)
            stop = min(max(ideal, earliest[place + 1]), self.last_stop(place, border, limit))
            lens[self.members[place]] = (stop - border) * self.multiple
            border = stop
        return tuple(lens)

    def _pairs_before(self, border: int) -> int:
        return shard_pairs(self.layout, self.seq_len, 0, border * self.multiple, self.causal)
