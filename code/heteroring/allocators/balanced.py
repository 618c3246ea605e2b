"""The allocator `balanced`: the split whose predicted slowest rank is fastest, among the ranks that it uses."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from heteroring.allocators.ring_search import TOLERANCE, RingSearch
from heteroring.allocators.unit_costs import Cost, check_costs
from heteroring.arguments import prefix_lengths
from heteroring.ring.partition import check_layout
from heteroring.ring.workload import shard_extra_rows, shard_pairs, total_pairs

# The least gain over its fastest rank alone that a ring must be predicted to bring, in time and as a fraction of that
# time. The model knows what ranks compute, not what they wait for. Of rings of 4,096 and 8,192 tokens over two H200s,
# those with a predicted gain of up to 22 us lose, and those with 28 us or more win, with two exceptions
# (docs/experiments/ring.md). The margin is the model's own error.
RING_MARGIN = 0.02
RING_WAIT_US = 25.0

# Most tokens of a sequence: borders are whole numbers held in floats, which are exact up to here.
LONGEST = 2**53


def balanced(
    seq_len: int,
    costs: Sequence[Cost],
    layout: str = "zigzag",
    causal: bool = True,
    *,
    multiple: int = 1,
    margin: float = 0.0,
    wait_us: float = 0.0,
    most: Sequence[int] | None = None,
    prefix_lens: Sequence[int] = (),
) -> tuple[int, ...]:
    """Split tokens so that the predicted time of the slowest rank is least.

    A rank's time is that of `predicted_ms`: pair_us per score pair, token_us per token, and revisit_us (join_us in ring
    step 1) per query row in each step beyond its own KV. More ranks mean more steps, so leaving a rank out is
    considered. Up to EVERY_SET ranks (some 18 where only some hold earlier tokens), no split over any set of them is
    faster by more than 1 part in 10^11. Of more ranks, only the sets of the n fastest are considered, by their time for
    the whole sequence alone; another set may do better where ring steps are expensive. docs/planning.md explains the
    search.

    Many splits may attain the least time. Each border is placed as near as that time allows to where a split in
    proportion to speed would put it, which also balances the ranks that stay below it.

    Args:
        seq_len: Tokens to split, at most LONGEST.
        costs: Microseconds of each kind of work, by rank.
        layout: "zigzag" or "contiguous".
        causal: Whether attention is causal.
        multiple: Tokens that are given out at a time; it divides `seq_len`.
        margin: One rank gets all tokens if that takes at most 1 + `margin` times the time of the best split, plus
            `wait_us`. Does not apply where another rank holds earlier tokens.
        wait_us: Microseconds, as in `margin`.
        most: The most tokens that each rank may get; None for no limit.
        prefix_lens: Earlier tokens that each rank holds and keeps, and all `seq_len` tokens see; () for none. A rank
            with new tokens has a step with every other rank that holds some, whether or not that rank gets new ones.

    Returns:
        Tokens per rank, each a multiple of `multiple`, summing to `seq_len`.

    Raises:
        ValueError: If the layout is unknown, `seq_len` is above LONGEST, `multiple` does not divide it, there are no
            costs, or one is negative, not finite, or nothing for a score pair, if the ranks may not hold `seq_len`
            tokens, and if prefix_lens are not one length per rank, each 0 or more.
    """
    check_layout(layout)
    check_costs(costs)
    earlier = prefix_lengths("prefix_lens", prefix_lens, len(costs))
    costs = _over_prefix(costs, earlier)
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

    most = [seq_len] * len(costs) if most is None else [min(room, seq_len) // multiple * multiple for room in most]
    if len(most) != len(costs) or min(most) < 0 or sum(most) < seq_len:
        raise ValueError(
            f"ranks may hold {sum(most)} tokens together, in multiples of {multiple}: seq_len is {seq_len}"
        )
    upper, size = alone[fastest], 1
    if most[fastest] < seq_len:  # then all of them, at the slowest rank's costs
        further_us = max(max(cost.revisit_us, cost.join_us) for cost in costs) * seq_len * len(costs)
        upper, size = min(max(alone) + further_us, 1e300), len(costs)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # times of very slow ranks overflow
        search = RingSearch(seq_len, costs, fastest_first, layout, causal, multiple, most, earlier)
        limit, members = search.best(upper * (1 + TOLERANCE), size)
    apart = not any(length for rank, length in enumerate(earlier) if rank != fastest)
    if apart and (margin or wait_us) and most[fastest] == seq_len and alone[fastest] <= (1 + margin) * limit + wait_us:
        return tuple(seq_len * (rank == fastest) for rank in range(len(costs)))
    ring = _Ring(members, seq_len, tuple(costs), layout, causal, multiple, tuple(most), earlier)
    return ring.split(limit * (1 + TOLERANCE))


def _over_prefix(costs: Sequence[Cost], earlier: tuple[int, ...]) -> Sequence[Cost]:
    """`costs` with a new token's attention to the earlier tokens added to token_us, since no split can avoid it.

    That is its pairs, and one row in a step with each other rank that holds some; step 1 is with the rank before.
    """
    if not earlier:
        return costs
    pairs, holders = sum(earlier), sum(map(bool, earlier))
    answer = []
    for rank, cost in enumerate(costs):
        in_step_1 = len(costs) > 1 and bool(earlier[rank - 1])
        row_us = cost.revisit_us * (holders - bool(earlier[rank]) - in_step_1) + cost.join_us * in_step_1
        answer.append(cost._replace(token_us=cost.token_us + cost.pair_us * pairs + row_us))
    return answer


@dataclass(frozen=True)
class _Ring:
    """Some of the ranks, in rank order, each assumed to get tokens. Borders count multiples from the front.

    Costs are those of `_over_prefix`, which hold the ring steps with ranks that have `earlier` tokens.
    """

    members: tuple[int, ...]
    seq_len: int
    costs: tuple[Cost, ...]
    layout: str
    causal: bool
    multiple: int
    most: tuple[int, ...]
    earlier: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.seq_len // self.multiple

    def time(self, place: int, start: int, stop: int) -> float:
        """Microseconds of the member at `place` for what lies between two borders."""
        cost = self.costs[self.members[place]]
        offset, length = start * self.multiple, (stop - start) * self.multiple
        pairs = shard_pairs(self.layout, self.seq_len, offset, length, self.causal)
        rows = shard_extra_rows(self.layout, offset, length, *self.met[place], self.causal)
        first_rows = shard_extra_rows(self.layout, offset, length, *self.met_first(place), self.causal)
        return cost.time_us(pairs, length, rows, first_rows)

    @cached_property
    def met(self) -> list[tuple[int, int]]:
        """(ranks in front, ranks behind) with which each member has a ring step because of their new tokens.

        Under a causal mask, the new tokens of ranks behind need a rectangle of their own.
        """
        anew = list(accumulate(map(self._met_anew, self.members), initial=0))
        size = len(self.members)
        behind = [size - 1 - place if self.causal else anew[-1] - anew[place + 1] for place in range(size)]
        return list(zip(anew[:-1], behind, strict=True))

    def met_first(self, place: int) -> tuple[int, int]:
        """How many of `met` are met in ring step 1: at most one."""
        rank, before = self.members[place], self.members[place - 1]
        meets = before != rank and before == (rank - 1) % len(self.costs) and self._met_anew(before)
        return int(meets and rank > 0), int(meets and rank == 0)

    def _met_anew(self, rank: int) -> bool:
        return not (self.earlier and self.earlier[rank])

    def last_stop(self, place: int, start: int, limit: float, about: int) -> int:
        end = min(self.end, start + self._most(place))
        return _last(lambda stop: self.time(place, start, stop) <= limit, start, end, start + about)

    def first_start(self, place: int, stop: int, limit: float, about: int) -> int:
        most = min(stop, self._most(place))
        return stop - _last(lambda length: self.time(place, stop - length, stop) <= limit, 0, most, about)

    def _most(self, place: int) -> int:
        return self.most[self.members[place]] // self.multiple

    def split(self, limit: float) -> tuple[int, ...]:
        """Tokens of every rank, within a feasible limit."""
        places = range(len(self.members))
        alone = [self.time(place, 0, self.end) for place in places]
        about = [int(self.end * min(1, limit / each)) for each in alone]
        earliest = [self.end]
        for place in reversed(places):
            earliest.append(self.first_start(place, earliest[-1], limit, about[place]))
        earliest.reverse()

        shares = list(accumulate(1 / each for each in alone))
        whole = total_pairs(self.seq_len, self.causal) + self.seq_len * sum(self.earlier)
        power = 0.5 if self.causal and self.layout == "contiguous" else 1
        lens = [0] * len(self.costs)
        border = 0
        for place in places:
            share = shares[place] / shares[-1]
            ideal = self._reaches(whole * share, int(self.end * share**power))
            stop = min(max(ideal, earliest[place + 1]), self.last_stop(place, border, limit, about[place]))
            lens[self.members[place]] = (stop - border) * self.multiple
            border = stop
        return tuple(lens)

    def _reaches(self, pairs: float, about: int) -> int:
        """The first border with `pairs` score pairs in front of it; found fast if near `about`."""

        def before(border: int) -> int:
            tokens = border * self.multiple
            return shard_pairs(self.layout, self.seq_len, 0, tokens, self.causal) + tokens * sum(self.earlier)

        return _last(lambda border: border == 0 or before(border - 1) < pairs, 0, self.end, about)


def _last(holds: Callable[[int], bool], low: int, high: int, about: int) -> int:
    """The largest number from `low` to `high` for which `holds`, as for all below it; found fast if near `about`."""
    step, number = 1, min(max(about, low), high)
    if number == low or holds(number):
        low = number
        while low < high and holds(min(low + step, high)):
            low, step = min(low + step, high), 2 * step
        high = min(low + step, high)
    else:
        high = number
        while high - step > low and not holds(high - step):
            high, step = high - step, 2 * step
        low = max(low, high - step)
    if low == high:
        return low
    return low + bisect_left(range(1, high - low), True, key=lambda more: not holds(low + more))
