"""Re-splitting while running: estimates of the ranks' speeds from chunk to chunk, and the decision to follow them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from heteroring.allocators.apportion import apportion
from heteroring.arguments import finite, positive, whole_number
from heteroring.ring.partition import Partition

# Standard deviations relative to a rank's time per token. NOISE is the assumed scatter of a chunk's time until it has
# been learned, and LEAST_NOISE the least that is ever assumed; DRIFT is how far a speed may drift from chunk to chunk.
NOISE, LEAST_NOISE, DRIFT = 0.05, 0.01, 0.025
# In standard deviations: an error beyond SURE means that the speed changed, and so does one beyond LIKELY in the same
# direction right after, since a speed that changes within a chunk shows only in part in that chunk.
SURE, LIKELY = 4.0, 2.0
# Largest relative error of an estimate that a new split must survive; below it, LIKELY standard deviations. It is
# limited because where noise is larger, so is the time that keeping an old split may lose.
MOST_DOUBT = 0.1
# Chunks over which noise is averaged.
MEMORY = 8


class Rebalancer:
    """Splits the chunks of a prompt, in zigzag, in proportion to the speeds that the chunks before them showed.

    Speeds are estimated by a Kalman filter, and the split changes only if the slowest rank of a chunk is predicted to
    gain more than `margin` (docs/planning.md, "While it runs"). Ranks that observe the same values decide the same.

    Args:
        speeds: Relative speeds of the ranks to begin with, such as (1, 1), or the `block_lens` of a balanced split.
        multiple: Tokens that are given out at a time, where a chunk has so many for each rank: 256 are whole tiles on
            GPUs. The remainder goes to the fastest rank.
        margin: Part of a chunk's time that a new split must be predicted to gain.

    Raises:
        ValueError: If there are no speeds or one is not positive (a rank without tokens could not be measured), or for
            a multiple below 1 or a margin that is no number.
    """

    def __init__(self, speeds: Sequence[float], *, multiple: int = 1, margin: float = 0.01) -> None:
        given = tuple(speeds)
        if not given:
            raise ValueError("speeds is empty: one is needed for each rank")
        self.speeds = tuple(positive(f"speed {rank}", speed) for rank, speed in enumerate(given))
        self._multiple = whole_number("multiple", multiple, "1 token or more are given out at a time", least=1)
        self._margin = finite("margin", margin)
        self._token_time = [1 / speed for speed in self.speeds]
        self._noise = [NOISE * NOISE] * len(given)  # variances
        self._doubt = [NOISE * NOISE] * len(given)
        self._changed = [0.0] * len(given)  # relative change of speed in the last chunk, 0 if none

    @property
    def estimates(self) -> tuple[float, ...]:
        """Relative speeds as estimated so far; the split follows them when that is worth it."""
        return tuple(1 / time for time in self._token_time)

    @property
    def state(self) -> tuple:
        """Everything that the splits of later chunks depend on; the same on all ranks."""
        estimates = zip(self._token_time, self._noise, self._doubt, self._changed, strict=True)
        return self._multiple, self._margin, self.speeds, tuple(estimates)

    def partition(self, tokens: int) -> Partition:
        """Split the next chunk.

        Args:
            tokens: Tokens of the chunk, 1 or more.

        Returns:
            Its zigzag partition. Every rank has some tokens, to be measured by, where there are enough of them.

        Raises:
            ValueError: If `tokens` is no integer from 1.
        """
        rule = "a chunk has 1 token or more"
        return Partition.zigzag(self._split(self.speeds, whole_number("tokens", tokens, rule, least=1)))

    def observe(self, partition: Partition, seconds: Sequence[float]) -> None:
        """Learn from the times of a chunk, and change the split of the next one where that is worth it.

        A chunk in which a rank had no tokens is ignored.

        Args:
            partition: Partition of the chunk.
            seconds: How long each rank was busy with its tokens, in seconds, in rank order.

        Raises:
            ValueError: If `partition` or `seconds` is of another number of ranks than `speeds`.
        """
        if not partition.world_size == len(seconds) == len(self.speeds):
            raise ValueError(
                f"seconds of {len(seconds)} ranks and a partition of {partition.world_size}: this splits over "
                f"{len(self.speeds)}"
            )
        if not all(tokens and 0 < busy < math.inf for tokens, busy in zip(partition.block_lens, seconds, strict=True)):
            return
        observed = zip(seconds, partition.block_lens, self._token_time, strict=True)
        ratios = [busy / tokens / expected for busy, tokens, expected in observed]
        usual = median(ratios)
        for rank, ratio in enumerate(ratios):
            self._learn(rank, ratio / usual - 1)
        now, then = (self._split(speeds, partition.seq_len) for speeds in (self.speeds, self.estimates))
        times = [
            time * (1 + math.copysign(min(MOST_DOUBT, LIKELY * math.sqrt(doubt)), after - before))
            for time, doubt, before, after in zip(self._token_time, self._doubt, now, then, strict=True)
        ]
        if 1 - _slowest(then, times) / _slowest(now, times) > self._margin:
            self.speeds = self.estimates

    def _learn(self, rank: int, miss: float) -> None:
        """Correct the estimate of `rank`, whose relative error was `miss`."""
        doubt = self._doubt[rank] + DRIFT * DRIFT
        expected = doubt + self._noise[rank]
        enough = LIKELY if miss * self._changed[rank] > 0 else SURE
        changed = miss * miss > enough * enough * expected
        gain = 1.0 if changed else doubt / expected
        self._changed[rank] = miss if changed else 0.0
        self._token_time[rank] *= 1 + gain * miss
        self._doubt[rank] = self._noise[rank] if changed else gain * self._noise[rank]
        if not changed:  # the error of a changed speed would be taken for noise
            seen = min(miss * miss, 4 * expected)
            self._noise[rank] = max(LEAST_NOISE * LEAST_NOISE, self._noise[rank] + (seen - expected) / MEMORY)

    def _split(self, speeds: Sequence[float], tokens: int) -> tuple[int, ...]:
        unit = self._multiple if tokens >= self._multiple * len(speeds) else 1
        lens = [unit * units for units in apportion(speeds, tokens // unit)]
        for rank, length in enumerate(lens):
            longest = lens.index(max(lens))
            if not length and lens[longest] > unit:
                lens[longest] -= unit
                lens[rank] += unit
        lens[speeds.index(max(speeds))] += tokens % unit
        return tuple(lens)


def _slowest(lens: Sequence[int], times: Sequence[float]) -> float:
    return max(length * time for length, time in zip(lens, times, strict=True))
