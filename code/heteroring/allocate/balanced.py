"""The makespan-minimal allocator: among the ranks that it uses, no split has a faster predicted slowest rank."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from heteroring.allocate.costs import Cost, check_costs
from heteroring.ring.partition import check_layout
from heteroring.ring.work import shard_extra_rows, shard_pairs, total_pairs

# What a ring must be predicted to gain on its fastest rank alone to be worth having, in time and in parts of its time.
# The model knows what ranks compute, not what they wait for: until the first keys come, a rank on two H200s waited for
# up to 90 us (docs/experiments/ring.md).
RING_MARGIN = 0.03
RING_WAIT_US = 60.0


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

    A rank's time is that of `predicted_ms`: pair_us a score pair, token_us a token, and revisit_us (join_us in the
    first step) a query row that it visits beyond its own KV, of which there are the more, the more ranks hold tokens.
    So a rank may cost the others more than it brings, and leaving it out is considered: once for every number of
    ranks, always the fastest ones, as measured by the whole sequence alone. For each such set of ranks the split is
    the best there is, exactly; of three ranks or more, another set may do better where a fast one's visits or tokens
    are dear. If one rank alone needs no more than 1 + `margin` times the time of the best split, and
    `wait_us` more, it gets all tokens.

    For a set of ranks that hold tokens, a rank's time for tokens [start, stop) in rank order grows with stop and falls
    as start grows. So if each rank in turn takes all it can finish within a limit, no other split gets further within
    it: the limit is feasible exactly if this greedy fill reaches `seq_len`. Bisection down to neighbouring floats
    finds the least feasible limit. Many splits may attain it; each border goes as near as that limit allows to where
    speed-proportional work would put it, which leaves the ranks below the limit balanced too.

    Raises ValueError if the layout is unknown, `multiple` does not divide `seq_len`, there are no costs, or one is
    negative, not finite, or nothing for a score pair.
    """
    check_layout(layout)
    check_costs(costs)
    if multiple < 1 or seq_len % multiple:
        raise ValueError(f"multiple is {multiple}: it must be 1 or more and divide seq_len {seq_len}")
    pairs = total_pairs(seq_len, causal)
    alone = [cost.pair_us * pairs + cost.token_us * seq_len for cost in costs]
    fastest_first = sorted(range(len(costs)), key=alone.__getitem__)

    limit, best = math.inf, None
    for size in range(len(costs), 0, -1):  # all ranks first: on a tie nobody is left out
        ring = _Ring(tuple(sorted(fastest_first[:size])), seq_len, tuple(costs), layout, causal, multiple)
        if (found := ring.least_limit(math.nextafter(limit, 0.0))) is not None:
            limit, best = found, ring.split(found)
    if (margin or wait_us) and alone[fastest_first[0]] <= (1 + margin) * limit + wait_us:
        return tuple(seq_len * (rank == fastest_first[0]) for rank in range(len(costs)))
    return best


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
        rank, ranks = self.members[place], len(self.costs)
        meets = ranks > 1 and (rank - 1) % ranks in self.members
        return int(meets and rank > 0), int(meets and rank == 0)

    def last_stop(self, place: int, start: int, limit: float) -> int:
        stops = range(self.end + 1)
        return bisect_right(stops, limit, lo=start, key=lambda stop: self.time(place, start, stop)) - 1

    def first_start(self, place: int, stop: int, limit: float) -> int:
        # Time falls as the start rises, and bisection wants a rising key: hence the signs.
        return bisect_left(range(stop), -limit, key=lambda start: -self.time(place, start, stop))

    def feasible(self, limit: float) -> bool:
        border = 0
        for place in range(len(self.members)):
            border = self.last_stop(place, border, limit)
        return border == self.end

    def least_limit(self, upper: float) -> float | None:
        """The least feasible limit, or None if it is above `upper`."""
        upper = min(upper, *(self.time(place, 0, self.end) for place in range(len(self.members))))
        if not self.feasible(upper):
            return None
        lower = 0.0
        while lower < (middle := (lower + upper) / 2) < upper:
            lower, upper = (lower, middle) if self.feasible(middle) else (middle, upper)
        return upper

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
