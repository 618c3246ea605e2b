"""What ring attention costs each rank: score pairs, tokens, and query rows that it visits more than once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from heteroring.ring.partition import Partition
from heteroring.ring.workload import extra_rows, next_rows, score_pairs


class Cost(NamedTuple):
    """Microseconds that a rank needs for one unit of each kind of work, in one call.

    pair_us: a score pair, in all heads and sequences of the batch. token_us: whatever else is done for each token,
    beside attention. revisit_us: a query row folded into a result that is there already, its pairs not counted; that
    is, a visit's start and end of a tile, and its merge. join_us: the same in the ring's first step, which some kernels
    join with the visit to a rank's own KV, in one pass; others fold it in like any other.
    """

    pair_us: float
    token_us: float = 0.0
    revisit_us: float = 0.0
    join_us: float = 0.0

    def time_us(self, pairs: int, tokens: int, rows: int, joined: int) -> float:
        """Time for score pairs, tokens and extra rows, `joined` of which are visited in the first step."""
        return self.pair_us * pairs + self.token_us * tokens + self.revisit_us * (rows - joined) + self.join_us * joined


def cost_of_speed(speed: float) -> Cost:
    """The cost at `speed` TFLOP/s of a call that is all score pairs, of a single head of width 1.

    Scale-free: what serves to compare splits where only speeds are known.
    """
    return Cost(pair_us=4e-6 / speed)


def check_costs(costs: Sequence[Cost]) -> None:
    """Raise ValueError unless there are costs, a pair's positive and finite, the others not negative and finite."""
    if len(costs) == 0:
        raise ValueError("costs is empty: at least one rank is needed")
    for rank, cost in enumerate(costs):
        for name, value in cost._asdict().items():
            if not (math.isfinite(value) and (value > 0 or (value == 0 and name != "pair_us"))):
                rule = "positive and finite" if name == "pair_us" else "not negative and finite"
                raise ValueError(f"{name} of rank {rank} is {value}: it must be {rule}")


def predicted_ms(partition: Partition, costs: Sequence[Cost], causal: bool = True) -> tuple[float, ...]:
    """Milliseconds that each rank is busy in one call: its pairs, its tokens and its extra rows at their costs.

    Raises ValueError if the number of costs is not the world size, or one breaks the rule of `check_costs`.
    """
    check_costs(costs)
    if len(costs) != partition.world_size:
        raise ValueError(f"{len(costs)} costs for {partition.world_size} ranks: one a rank is needed")
    pairs, rows, joined = (count(partition, causal) for count in (score_pairs, extra_rows, next_rows))
    work = zip(costs, pairs, partition.block_lens, rows, joined, strict=True)
    return tuple(cost.time_us(*each) / 1e3 for cost, *each in work)
