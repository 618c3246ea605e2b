"""Search for the ranks whose ring finishes first, and for the least time limit that it keeps."""

from collections.abc import Sequence

import numpy as np

from heteroring.allocators.unit_costs import Cost

# Relative accuracy to which the least limit is found.
TOLERANCE = 1e-12
# How many fills NumPy computes at once in hardly more time than one.
FILLS = 256
# Up to how many ranks every set of them is considered. The cost grows with the cube of their number; where only some
# hold earlier tokens it grows with the fourth power, and the limit is lower.
EVERY_SET = 32


class RingSearch:
    """Finds the ranks whose ring has the least time of its slowest rank. Borders count multiples from the front.

    A ring keeps a limit on the time if a greedy fill, in which each rank takes all that it can finish within the limit,
    reaches the end (docs/planning.md, "The search of `balanced`"). NumPy fills many rings to many limits at once.

    Args:
        seq_len: Tokens to split.
        costs: Microseconds of each kind of work, by rank; token_us includes attention to earlier tokens.
        fastest_first: The ranks, sorted by their time for the whole sequence alone.
        layout: "contiguous" or "zigzag".
        causal: Whether attention is causal.
        multiple: Tokens that are given out at a time.
        most: The most tokens of each rank.
        earlier: Earlier tokens that each rank holds; () for none.
    """

    def __init__(
        self,
        seq_len: int,
        costs: Sequence[Cost],
        fastest_first: Sequence[int],
        layout: str,
        causal: bool,
        multiple: int,
        most: Sequence[int],
        earlier: Sequence[int] = (),
    ) -> None:
        self._ranks, self._end = len(costs), seq_len // multiple
        self._most = np.array(most)[:, None, None] // multiple
        self._seq_len, self._step = seq_len, multiple
        # Each [ranks, 1, 1].
        self._pair_us, self._token_us, self._revisit_us, self._join_us = np.array(costs, dtype=float).T[..., None, None]
        self._saved_us = self._revisit_us - self._join_us
        self._causal = causal
        # `anew`: ranks without earlier tokens, whose keys the others attend to only if they get new ones. `known`: the
        # number of the others, under a causal mask. A rank in front of one of these has a second rectangle in the same
        # step, for its new tokens.
        self._anew = np.array([not length for length in earlier] or [True] * len(costs))
        self._known = int((~self._anew).sum()) if causal else 0
        self._fastest_first = fastest_first
        self._place = np.argsort(fastest_first)[:, None]  # each rank's place among the fastest
        self._contiguous, self._zigzag = causal and layout == "contiguous", causal and layout == "zigzag"

    def best(self, upper: float, size: int) -> tuple[float, tuple[int, ...]]:
        """The ring with the least limit: of the n fastest ranks for every n, and up to EVERY_SET ranks of all sets.

        Args:
            upper: A limit, in microseconds, that the fastest `size` ranks keep.
            size: Number of ranks.

        Returns:
            The limit in microseconds, to within TOLERANCE, and the ranks of the ring, ascending.
        """
        limit, size = self._fastest(upper, size)
        steps_cost = self._revisit_us.any() or self._join_us.any()
        states = (1 + int(self._anew.sum())) * (1 + self._known)
        if steps_cost and 1 < self._ranks <= EVERY_SET and self._ranks**2 * states <= EVERY_SET**2 * (EVERY_SET + 1):
            lower, upper = 0.0, limit * (1 - 10 * TOLERANCE)
            if self._any_set(np.array([upper]))[0].any():
                while upper - lower > TOLERANCE * upper:
                    limits = np.linspace(lower, upper, 9)
                    kept, _ = self._any_set(limits[1:])
                    lower, upper = map(float, limits[int(kept.argmax()) :][:2])
                return upper, self._any_set(np.array([upper]))[1]
        return limit, tuple(sorted(self._fastest_first[:size]))

    def _fastest(self, upper: float, size: int) -> tuple[float, int]:
        """The least limit that a ring of the n fastest ranks keeps, and the largest n that keeps it.

        Intervals of n are halved, and dropped where a lower bound on the time of all their rings is above a limit that
        some ring keeps (docs/planning.md, "The search of `balanced`").
        """
        low, high = np.array([1]), np.array([self._ranks])
        lower = 0.0
        while len(low):
            found = upper - lower <= TOLERANCE * upper
            limits = np.linspace(lower, upper, 2 if found else max(2, FILLS // len(low)) + 1)
            kept = self._kept(np.append(low, high), np.append(high, high), limits[1:])
            bounds, rings = kept[: len(low)], kept[len(low) :]
            least = int(rings.any(axis=0).argmax()) if rings.any() else len(limits) - 2
            largest = int(high[rings[:, least]].max(initial=1))
            size = largest if limits[least + 1] < upper else max(size, largest)
            lower, upper = lower if found else float(limits[bounds.any(axis=0).argmax()]), float(limits[least + 1])
            left = bounds[:, least]
            if upper - lower <= TOLERANCE * upper:
                left &= high > size
            low, high = low[left], high[left]
            middle = (low + high) // 2
            halved = low < high
            low, high = np.append(low, middle[halved] + 1), np.append(np.where(halved, middle, high), high[halved])
        return upper, size

    def _kept(self, low: np.ndarray, high: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """Whether the n fastest ranks keep the limits: [rings, limits].

        Where `low` and `high` are equal, n is both. Where not, this is a bound on all n between them: the work is
        shared by `high` ranks, each of which has the ring steps of a ring of `low`.
        """
        holds, member, anew = self._place < low, self._place < high, self._anew[:, None]
        in_front: np.ndarray = np.cumsum(holds & anew, axis=0) - (holds & anew)
        met_behind = holds if self._causal else holds & anew
        behind = met_behind.sum(axis=0) - np.cumsum(met_behind, axis=0)
        # In ring step 1 a rank attends to the rank before it; before rank 0 that is the last rank, which lies behind.
        saved_us = np.roll(member & anew, 1, axis=0) & (high > 1)
        saved_us = saved_us * self._saved_in_step_1(low == high)
        is_first = np.arange(self._ranks)[:, None] == 0
        front_us = np.maximum(0, self._revisit_us[..., 0] * in_front - saved_us * ~is_first)[..., None]
        behind_us = np.maximum(0, self._revisit_us[..., 0] * behind - saved_us * is_first)[..., None]
        paces, member = self._paces(slice(None), front_us, behind_us), member[..., None]
        if not self._contiguous and not (self._zigzag and self._step % 2):  # time is the same wherever a shard begins
            units = np.minimum(self._reached(paces, np.zeros(1), limits), self._most)
            return np.where(member, units, 0).sum(axis=0) >= self._end
        borders = np.zeros((len(low), len(limits)))
        for rank in range(self._ranks):
            reached = self._reached([each[rank] for each in paces], borders, limits)
            reached = np.minimum(reached, np.minimum(borders + self._most[rank], self._end))
            borders = np.where(member[rank], reached, borders)
        return borders == self._end

    def _saved_in_step_1(self, ring: np.ndarray) -> np.ndarray:
        """Microseconds that a row of each rank saves in ring step 1: [ranks, rings].

        Where `ring` is false, negative savings are taken for 0, so that the time is a lower bound.
        """
        return np.where(ring, self._saved_us[..., 0], np.maximum(0, self._saved_us[..., 0]))

    def _any_set(self, limits: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """Whether some set of ranks keeps each limit; and a largest set that keeps the last limit.

        A dynamic programme over ranks: `borders` holds the furthest border that the ranks so far can reach, for each
        state on which the time of the next rank depends (docs/planning.md, "The search of `balanced`").
        """
        ranks, met = self._ranks, np.arange(self._ranks + 1)[:, None, None, None, None]
        anew, known = np.arange(self._anew.sum() + 1)[:, None, None], np.arange(self._known + 1)[:, None]
        with_last, with_previous = np.arange(2).reshape(2, 1, 1, 1, 1, 1), np.arange(2)[:, None, None, None]
        # Axes: with the last rank, met, with the previous rank, anew, known, limit.
        borders = np.full((2, ranks + 1, 2, len(anew), len(known), len(limits)), -1.0)
        sets = np.zeros(borders.shape, dtype=np.int64)  # one bit per rank
        borders[:, :, 0, 0, 0] = 0
        for rank in range(ranks):
            revisit_us, saved_us = self._revisit_us[rank], self._saved_us[rank] * self._anew[rank - 1]
            counts = int(self._anew[rank] or self._known > 0)
            front_us, behind_us = revisit_us * anew, revisit_us * (met - anew - known - counts)
            if rank:
                front_us = front_us - saved_us * with_previous
            else:
                behind_us = behind_us - saved_us * with_last
            paces = self._paces(rank, np.maximum(0, front_us), np.maximum(0, behind_us))
            reached = self._reached(paces, np.maximum(borders, 0), limits)
            reached = np.minimum(reached, np.minimum(borders + self._most[rank], self._end))
            reached = np.where((borders >= 0) & (anew + known + counts <= met), reached, -1)
            left_out, taken = _furthest(borders, sets), _furthest(reached, sets)
            borders[:], sets[:] = -1, 0
            borders[:, :, 0], sets[:, :, 0] = left_out
            axis = 2 if self._anew[rank] else 3
            borders[:, :, 1], sets[:, :, 1] = (np.roll(each, counts, axis) for each in (taken[0], taken[1] | 1 << rank))
        whole = (borders == self._end) & (anew + known == met)
        whole[0, :, 1] = whole[1, :, 0] = False
        most = int(whole[..., -1].any(axis=(0, 2, 3, 4)).nonzero()[0].max(initial=0))
        chosen = int(sets[:, most, ..., -1][whole[:, most, ..., -1]].max(initial=0))
        return whole.any(axis=(0, 1, 2, 3, 4)), tuple(rank for rank in range(ranks) if chosen >> rank & 1)

    def _paces(self, rank: int | slice, front_us: np.ndarray, behind_us: np.ndarray) -> tuple[np.ndarray, ...]:
        """What `_reached` needs to know of a rank: its time for a unit, and how that changes from unit to unit.

        front_us and behind_us are the times of a row's ring steps with all ranks in front and with all ranks behind.
        """
        pair_us, token_us, step = self._pair_us[rank], self._token_us[rank], self._step
        if self._contiguous:
            return step * (pair_us / 2 + token_us + front_us), pair_us * step * step
        if not self._zigzag:
            return (step * (pair_us * self._seq_len + token_us + front_us + behind_us),)
        unit_us = step * (pair_us * (self._seq_len + 1) / 2 + token_us + front_us + behind_us / 2)
        if step % 2 == 0:
            return (unit_us,)
        return 2 * unit_us, unit_us + (pair_us * (self._seq_len - step) + behind_us) / 2, pair_us * step / 2

    def _reached(self, paces: Sequence[np.ndarray], border: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """The border that a rank gets to from `border` within `limit`, which may come out beyond the end."""
        if len(paces) == 1:
            return border + np.floor(limit / paces[0])
        if self._contiguous:
            # A token has as many pairs as tokens are in front of it: a quadratic equation.
            first_us, more_us = paces
            slope = first_us + more_us * border
            twice = 2 * limit / slope
            return border + np.floor(twice / (1 + np.sqrt(1 + more_us * twice / slope)))
        # Zigzag by odd steps. Two steps from an even border take as long as any other two; of the two, the first
        # holds the one token more in the tail, and this token's pairs, which are the fewer, the further inside it is.
        two_us, one_us, less_us = paces
        begun = border % 2
        border = border - begun
        left = limit + begun * (one_us - less_us * border)
        twos = np.floor(left / two_us)
        border = border + 2 * twos
        return border + (one_us - less_us * border <= left - twos * two_us)


def _furthest(borders: np.ndarray, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The further of two borders along the third axis, and its set."""
    best = borders.argmax(axis=2)[:, :, None]
    return np.take_along_axis(borders, best, axis=2)[:, :, 0], np.take_along_axis(sets, best, axis=2)[:, :, 0]
