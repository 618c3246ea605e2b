"""Costs of ring attention on each rank: per score pair, per token, and per query row of each further ring step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from heteroring.arguments import prefix_lengths
from heteroring.ring.partition import Partition
from heteroring.ring.workload import extra_rows, first_step_rows, score_pairs


class Cost(NamedTuple):
    """Microseconds that a rank needs for one unit of each kind of work, in one call.

    pair_us: a score pair, in all heads and sequences of the batch. token_us: everything else that is done per token,
    beside attention. revisit_us: a query row of a ring step whose result is merged into an earlier one, without its
    pairs: the start and end of a tile, and the merge. join_us: the same in ring step 1, which some backends fuse with
    the step over a rank's own KV; others merge it like any other step.
    """

    pair_us: float
    token_us: float = 0.0
    revisit_us: float = 0.0
    join_us: float = 0.0

    def time_us(self, pairs: int, tokens: int, rows: int, first: int) -> float:
        """Time of a rank in one call.

        Args:
            pairs: Score pairs that the rank computes.
            tokens: Tokens that it holds.
            rows: Query rows in its ring steps beyond its own KV, counted once per step.
            first: How many of `rows` belong to ring step 1.

        Returns:
            Microseconds.
        """
        return self.pair_us * pairs + self.token_us * tokens + self.revisit_us * (rows - first) + self.join_us * first


def cost_of_speed(speed: float) -> Cost:
    """The cost at `speed` TFLOP/s of a call that consists of score pairs only, of a single head of width 1.

    Its scale is arbitrary: it serves to compare splits where only speeds are known.
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


def predicted_ms(
    partition: Partition, costs: Sequence[Cost], causal: bool = True, prefix_lens: Sequence[int] = ()
) -> tuple[float, ...]:
    """Milliseconds that each rank is busy in one call: its pairs, its tokens and its extra rows at their costs.

    Args:
        partition: Which tokens each rank holds.
        costs: The cost of each rank, in rank order.
        causal: Whether attention is causal.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        Milliseconds by rank.

    Raises:
        ValueError: If there is not one cost per rank, a cost breaks the rule of `check_costs`, or `prefix_lens` are not
            one length of 0 or more per rank.
    """
    check_costs(costs)
    if len(costs) != partition.world_size:
        raise ValueError(f"{len(costs)} costs for {partition.world_size} ranks: one per rank is needed")
    earlier = prefix_lengths("prefix_lens", prefix_lens, partition.world_size)
    pairs, rows, first = (count(partition, causal, earlier) for count in (score_pairs, extra_rows, first_step_rows))
    work = zip(costs, pairs, partition.block_lens, rows, first, strict=True)
    return tuple(cost.time_us(*each) / 1e3 for cost, *each in work)
