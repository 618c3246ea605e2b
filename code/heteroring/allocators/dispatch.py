"""`allocate` and `allocation`: check arguments, load a model, call the allocator by name, and refine `balanced`."""

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from operator import index

from heteroring.allocators.apportion import apportion
from heteroring.allocators.balanced import LONGEST, RING_MARGIN, RING_WAIT_US, balanced
from heteroring.allocators.cost_model import CostModel, CostPrediction
from heteroring.allocators.even import even
from heteroring.allocators.fitted_model import FittedModel
from heteroring.allocators.fitting import model_for
from heteroring.allocators.speed_model import Prediction
from heteroring.allocators.uneven import uneven
from heteroring.allocators.unit_costs import Cost, cost_of_speed
from heteroring.allocators.waves import BLOCK_M, MOST_RANKS, MOST_WAVES, KernelGrid, busy_us, in_whole_waves
from heteroring.arguments import flag, prefix_lengths
from heteroring.results.strategy import ALLOCATORS
from heteroring.ring.partition import Partition, check_layout
from heteroring.ring.workload import total_pairs
from heteroring.words import choices


@dataclass(frozen=True)
class Allocation:
    """Tokens per rank, and how they were derived.

    `clamped` tells that some speed is not the model's own: its table ends before the rank's length or
    percentage, or its formula turned negative there. `notes` say which, what was used instead, where a formula
    extrapolates, and which ranks a cost model leaves out. `model_source` is the operator that the model was fitted
    to, empty for `even` and `uneven`. `speeds` are the predictions of `lut` and `formula` in TFLOP/s, one per rank,
    `costs` what `balanced` minimised.
    """

    block_lens: tuple[int, ...]
    clamped: bool = False
    notes: tuple[str, ...] = ()
    model_source: str = ""
    speeds: tuple[float, ...] = ()
    costs: tuple[Cost, ...] = ()


def allocation(
    name: str,
    seq_len: int,
    *,
    percentages: Iterable[float],
    profile: FittedModel | str | os.PathLike[str] | None = None,
    layout: str = "zigzag",
    causal: bool = True,
    multiple: int | None = None,
    prefix_lens: Sequence[int] = (),
) -> Allocation:
    """Split `seq_len` tokens over ranks, as `allocate` does, and say how the split was derived.

    `lut` and `formula` split in proportion to the speeds that their model predicts. `balanced` minimises the predicted
    time of the slowest rank for the work that `layout` and `causal` really give it. Under a cost model, which knows
    what ring steps cost, it leaves out ranks that would slow the ring down, and gives all tokens to the fastest rank
    where a ring would gain little over it (RING_MARGIN, RING_WAIT_US).

    `balanced` gives out `multiple` tokens at a time, if there are so many, since a tile of queries that is not full
    takes a GPU as long as a full one; the remainder goes to one rank. Where the cost model knows the SMs, it counts
    whole waves of tiles (heteroring.allocators.waves).

    Args:
        name: The allocator, one of ALLOCATORS.
        seq_len: Tokens to split, 1 to LONGEST.
        percentages: Nominal speed of each rank in percent, 1 to 100, in rank order; `even` ignores them.
        profile: For `lut`, `formula` and `balanced`: a fitted model, the path of its JSON file, or that of a profile
            CSV, to which a model is fitted: to attention for `balanced`, otherwise to matmul where the file holds it.
        layout: "zigzag" or "contiguous", which only `balanced` depends on.
        causal: Whether attention is causal, which only `balanced` depends on.
        multiple: Tokens that `balanced` gives out at a time; None: 2 BLOCK_M, a tile each for head and tail, where
            whole waves are counted, elsewhere 1.
        prefix_lens: Earlier tokens that each rank holds and all `seq_len` tokens see; () for none. `balanced` reads a
            rank's speed at the whole length; the other allocators do not depend on them.

    Returns:
        The split, with the predictions that it is based on.

    Raises:
        ValueError: Naming the value and the rule, for an unknown allocator or layout, a number or list that breaks a
            rule above, and a missing or unsuitable profile.
    """
    if not isinstance(name, str) or name not in ALLOCATORS:
        raise ValueError(f"allocator {name!r} is unknown: choose {choices(name, ALLOCATORS)}")
    seq_len = _whole("seq_len", seq_len)
    multiple = multiple if multiple is None else _whole("multiple", multiple)
    percentages = _checked_percentages(percentages)
    if isinstance(profile, str) and (not profile or "\0" in profile):
        raise ValueError(f"profile is {profile!r}: it must be the path of a file")
    check_layout(layout)
    causal = flag("causal", causal)
    earlier = prefix_lengths("prefix_lens", prefix_lens, len(percentages))
    if name == "even":
        return Allocation(even(seq_len, len(percentages)))
    if name == "uneven":
        return Allocation(uneven(seq_len, percentages))

    model = model_for(name, profile)
    speeds: tuple[float, ...] = ()
    costs: tuple[Cost, ...] = ()
    predictions: Sequence[CostPrediction | Prediction]
    if isinstance(model, CostModel):
        told = [model.predict(seq_len, percentage, sum(earlier)) for percentage in percentages]
        predictions, costs = told, tuple(each.cost for each in told)
    else:
        length = seq_len + sum(earlier) if name == "balanced" else seq_len
        read = [model.predict(length, percentage) for percentage in percentages]
        predictions, speeds = read, tuple(each.speed for each in read)
    if name == "balanced":
        speeds, costs = (), costs or tuple(map(cost_of_speed, speeds))
        block_lens = _balanced(seq_len, costs, model, percentages, layout, causal, multiple, earlier)
    else:
        block_lens = apportion(speeds, seq_len)
    notes = [note for prediction in predictions for note in prediction.notes]
    if isinstance(model, CostModel):
        left_out = [rank for rank, length in enumerate(block_lens) if not length]
        notes += [
            f"balanced: rank {rank} gets no tokens: the ring would gain little or nothing by it" for rank in left_out
        ]
    return Allocation(
        block_lens=block_lens,
        clamped=any(prediction.clamped for prediction in predictions),
        notes=tuple(dict.fromkeys(notes)),
        model_source=model.source,
        speeds=speeds,
        costs=costs,
    )


def _balanced(
    seq_len: int,
    costs: Sequence[Cost],
    model: FittedModel,
    percentages: Sequence[float],
    layout: str,
    causal: bool,
    multiple: int | None,
    earlier: tuple[int, ...],
) -> tuple[int, ...]:
    """The split of `balanced` in multiples, if there are that many tokens; one rank gets the remainder.

    Where the model knows the SMs of all ranks, whole waves of tiles are counted.
    """
    if multiple is None:
        multiple = 2 * BLOCK_M if isinstance(model, CostModel) and model.sms else 1
    multiple = multiple if seq_len >= multiple else 1
    left_over = seq_len % multiple
    pairs = total_pairs(seq_len, causal) + seq_len * sum(earlier)
    alone = [cost.pair_us * pairs + cost.token_us * seq_len for cost in costs]

    def split(margin: float = 0.0, wait_us: float = 0.0) -> tuple[int, ...]:
        lens = balanced(
            seq_len - left_over,
            costs,
            layout,
            causal,
            multiple=multiple,
            margin=margin,
            wait_us=wait_us,
            prefix_lens=earlier,
        )
        # The remainder makes a tile that is not full, which costs the fastest rank least. Among equals the last rank
        # gets it, because its keys are seen by the fewest queries.
        takes = min((rank for rank, length in enumerate(lens) if length), key=lambda rank: (alone[rank], -rank))
        return tuple(length + left_over * (rank == takes) for rank, length in enumerate(lens))

    if not isinstance(model, CostModel):
        return split()
    ring = split()
    grids = _grids(model, seq_len, percentages, ring, sum(earlier)) if causal else []
    if not grids:
        return split(margin=RING_MARGIN, wait_us=RING_WAIT_US)
    ring = in_whole_waves(ring, costs, grids, layout, multiple, earlier)
    fastest = alone.index(min(alone))
    is_ring = any(length for rank, length in enumerate(earlier) if rank != fastest)
    busy = max(busy_us(Partition(layout, ring), costs, grids, earlier))
    if is_ring or min(alone) > (1 + RING_MARGIN) * busy + RING_WAIT_US:
        return ring
    return tuple(seq_len * (rank == fastest) for rank in range(len(costs)))


def _grids(
    model: CostModel, seq_len: int, percentages: Sequence[float], lens: Sequence[int], earlier: int
) -> list[KernelGrid]:
    """The grids of all ranks; none where their SMs or tiles are not known, or waves are not worth counting."""
    holders = [rank for rank, length in enumerate(lens) if length]
    if not 1 < len(holders) <= MOST_RANKS or not all(map(model.sms_at, percentages)):
        return []
    heads = int(model.setup["batch"]) * int(model.setup["heads"])
    waves = [heads * lens[rank] / BLOCK_M / model.sms_at(percentages[rank]) for rank in holders]
    found = [model.grid(seq_len, each, earlier) for each in percentages] if min(waves) <= MOST_WAVES else []
    return [grid for grid in found if grid] if all(found) else []


def allocate(
    name: str,
    seq_len: int,
    *,
    percentages: Iterable[float],
    profile: FittedModel | str | os.PathLike[str] | None = None,
    layout: str = "zigzag",
    causal: bool = True,
    prefix_lens: Sequence[int] = (),
) -> tuple[int, ...]:
    """Split `seq_len` tokens over ranks of unequal speed.

    Args:
        name: The allocator. `even` gives every rank the same; `uneven` splits in proportion to the percentages; `lut`
            and `formula` in proportion to the speeds that their model predicts; `balanced` minimises the predicted
            time of the slowest rank for the work of `layout` and `causal` (`allocation` has the details).
        seq_len: Tokens of the whole sequence, 1 or more.
        percentages: Nominal speed of each rank in percent, 1 to 100, in rank order.
        profile: For `lut`, `formula` and `balanced`: a fitted model, the path of its JSON file, or the path of a
            profile CSV, to which a model is then fitted. `even` and `uneven` ignore it.
        layout: "zigzag" or "contiguous", which only `balanced` depends on.
        causal: Whether attention is causal, which only `balanced` depends on.
        prefix_lens: Earlier tokens that each rank holds and all of the `seq_len` new tokens see, which only `balanced`
            depends on; () for none.

    Returns:
        Tokens per rank, each 0 or more, summing to `seq_len`.

    Raises:
        ValueError: For an unknown allocator or layout, a number or list that breaks a rule above, and a missing or
            unsuitable profile, naming the value and the rule.
    """
    found = allocation(
        name,
        seq_len,
        percentages=percentages,
        profile=profile,
        layout=layout,
        causal=causal,
        prefix_lens=prefix_lens,
    )
    return found.block_lens


def _whole(name: str, value: int) -> int:
    try:
        whole = index(value)
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: it must be an integer")
    if not 1 <= whole <= LONGEST:
        raise ValueError(f"{name} is {value}: it must be {'1 or more' if whole < 1 else f'{LONGEST} or less'}")
    return whole


def _checked_percentages(percentages: Iterable[float]) -> tuple[float, ...]:
    try:
        # Sets and mappings iterate, but not in rank order; texts iterate over letters and bytes.
        given = () if isinstance(percentages, str | bytes | Set | Mapping) else tuple(percentages)
    except TypeError:
        given = ()
    if not given:
        raise ValueError(f"percentages is {percentages!r}: it must be a list of numbers, one per rank, in rank order")
    for rank, percentage in enumerate(given):
        if not (isinstance(percentage, Real) and not isinstance(percentage, bool) and 1 <= percentage <= 100):
            raise ValueError(f"percentage of rank {rank} is {percentage!r}: it must be a number in 1..100")
    return given
