"""The makespan-minimal allocator: no split into whole tokens has a faster predicted slowest rank."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from heteroring.ring.partition import Partition, check_layout
from heteroring.ring.work import causal_flops, score_pairs, shard_pairs


def balanced(seq_len: int, speeds: Sequence[float], layout: str = "zigzag", causal: bool = True) -> tuple[int, ...]:
    """Tokens per rank that minimise max_r (score pairs of rank r) / speeds[r], exactly, in integers.

    `speeds` are positive, in any one unit. A rank too slow to be worth a single token gets none.

    In both layouts the pairs of a shard are W(stop) - W(start), where W(t) counts the pairs of the first t
    tokens in rank order. W grows with t, so if each rank in turn takes all it can finish within a limit, no
    other split gets further within it: the limit is feasible exactly if this greedy fill reaches `seq_len`.
    Bisection down to neighbouring floats then finds the least feasible limit. Many splits may attain it; each
    border goes as near as that limit allows to where speed-proportional work would put it, which leaves the
    ranks below the limit balanced too.

    Raises ValueError if the layout is unknown, there are no speeds, or one is not positive and finite.
    """
    check_layout(layout)
    _check_speeds(speeds)
    ranks = range(len(speeds))

    def work(tokens: int) -> int:
        return shard_pairs(layout, seq_len, 0, tokens, causal)

    def last_stop(rank: int, start: int, limit: float) -> int:
        done, stops = work(start), range(seq_len + 1)
        return bisect_right(stops, limit, lo=start, key=lambda stop: (work(stop) - done) / speeds[rank]) - 1

    def first_start(rank: int, stop: int, limit: float) -> int:
        # Time falls as the start rises, and bisection wants a rising key: hence the signs.
        done, starts = work(stop), range(stop)
        return bisect_left(starts, -limit, key=lambda start: (work(start) - done) / speeds[rank])

    def feasible(limit: float) -> bool:
        border = 0
        for rank in ranks:
            border = last_stop(rank, border, limit)
        return border == seq_len

    limit = _least(feasible, upper=work(seq_len) / max(speeds))

    earliest = [seq_len]
    for rank in reversed(ranks):
        earliest.append(first_start(rank, earliest[-1], limit))
    earliest.reverse()

    shares = list(accumulate(speeds))
    borders = [0]
    for rank in ranks:
        ideal = bisect_left(range(seq_len), work(seq_len) * (shares[rank] / shares[-1]), key=work)
        borders.append(min(max(ideal, earliest[rank + 1]), last_stop(rank, borders[-1], limit)))
    return tuple(borders[rank + 1] - borders[rank] for rank in ranks)


def predicted_seconds(
    partition: Partition,
    speeds: Sequence[float],
    *,
    causal: bool = True,
    batch: int = 1,
    heads: int = 1,
    head_dim: int = 1,
) -> tuple[float, ...]:
    """Busy time of each rank under the cost model of `balanced`: floating-point operations over speed.

    `speeds` in TFLOP/s, one a rank; the result in seconds for one attention call of the given shape. The
    default shape, a single head of width 1, serves to compare splits.

    Raises ValueError if the number of speeds is not the world size or one is not positive and finite.
    """
    _check_speeds(speeds)
    if len(speeds) != partition.world_size:
        raise ValueError(f"{len(speeds)} speeds for {partition.world_size} ranks: one a rank is needed")
    return tuple(
        causal_flops(batch, heads, head_dim, pairs) / (speed * 1e12)
        for pairs, speed in zip(score_pairs(partition, causal), speeds, strict=True)
    )


def _least(feasible: Callable[[float], bool], upper: float) -> float:
    """The least feasible float in (0, upper]; `upper` is feasible, and so is all above a feasible one."""
    lower = 0.0
    while lower < (middle := (lower + upper) / 2) < upper:
        lower, upper = (lower, middle) if feasible(middle) else (middle, upper)
    return upper


def _check_speeds(speeds: Sequence[float]) -> None:
    if len(speeds) == 0:
        raise ValueError("speeds is empty: at least one rank is needed")
    for rank, speed in enumerate(speeds):
        if not (math.isfinite(speed) and speed > 0):
            raise ValueError(f"speed of rank {rank} is {speed}: it must be positive and finite")
