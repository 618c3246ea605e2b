"""A plan: which ranks of a fleet hold how many tokens, within their memory, and how long the work will take."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heteroring.allocators.balanced import RING_MARGIN, RING_WAIT_US, balanced
from heteroring.allocators.costs import Cost
from heteroring.planning.fleet import Fleet
from heteroring.planning.simulate import Simulation, simulate
from heteroring.planning.splits import alone_us, split
from heteroring.planning.steps import steps
from heteroring.planning.work import Work
from heteroring.ring.partition import Partition, check_layout
from heteroring.ring.workload import total_pairs, two_kind_bound

# Up to how many ranks all rank orders are tried, and steps are listed.
ORDERED = 64
# What counts as all of a time or a memory, in words on what limits a plan.
NEARLY = 0.05


@dataclass(frozen=True)
class Split:
    """Tokens by place in the ring, the milliseconds of the work with them, and whether they fit in memory."""

    block_lens: tuple[int, ...]
    latency_ms: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """A split of `seq_len` tokens over a fleet. All tuples go by place in the ring; order[i] is the rank at place i.

    Times are those of the whole work, all layers: `latency_ms` that of the last rank, transfers included, and
    `bound_ms` the least that any split of the same work over these ranks could take. `memory_gb` is in 10^9 bytes.
    `limit` says what keeps it from being faster, `beside` are other splits in the same order.
    """

    fleet: Fleet
    work: Work
    layout: str
    order: tuple[int, ...]
    block_lens: tuple[int, ...]
    latency_ms: float
    bound_ms: float
    busy_ms: tuple[float, ...]
    memory_gb: tuple[float, ...]
    limit: str
    beside: dict[str, Split]
    notes: tuple[str, ...]
    simulation: Simulation

    @property
    def bound_fraction(self) -> float:
        return self.bound_ms / self.latency_ms

    @property
    def waiting_ms(self) -> tuple[float, ...]:
        """What each rank does not compute until the last one is done."""
        return tuple(self.latency_ms - busy for busy in self.busy_ms)

    def to_json(self) -> dict[str, Any]:
        """The plan as what JSON can hold; with the start and stop of each step up to ORDERED ranks."""
        ranks = [
            {
                "rank": rank,
                "name": self.fleet.ranks[rank].name,
                "node": self.fleet.ranks[rank].node,
                "measured": self.fleet.ranks[rank].data_sheet is None,
                "tokens": self.block_lens[place],
                "busy_ms": self.busy_ms[place],
                "waiting_ms": self.waiting_ms[place],
                "memory_gb": self.memory_gb[place],
                "memory_limit_gb": self.fleet.ranks[rank].memory_gb,
            }
            for place, rank in enumerate(self.order)
        ]
        answer = {
            "work": self.work.name,
            "seq_len": sum(self.block_lens),
            "layout": self.layout,
            "order": list(self.order),
            "block_lens": list(self.block_lens),
            "latency_ms": self.latency_ms,
            "bound_ms": self.bound_ms,
            "bound_fraction": self.bound_fraction,
            "limit": self.limit,
            "ranks": ranks,
            "beside": {
                name: {"latency_ms": split.latency_ms, "fits": split.fits, "block_lens": list(split.block_lens)}
                for name, split in self.beside.items()
            },
            "notes": list(self.notes),
        }
        if len(self.order) <= ORDERED:
            answer["step_ms"] = [
                [None if np.isnan(start) else [start / 1e3, stop / 1e3] for start, stop in zip(*each, strict=True)]
                for each in zip(self.simulation.starts_us.tolist(), self.simulation.stops_us.tolist(), strict=True)
            ]
        return answer


def plan(fleet: Fleet, seq_len: int, work: Work | None = None, *, layout: str = "zigzag", multiple: int = 256) -> Plan:
    """The fastest split of `seq_len` tokens that every rank has the memory for, over those ranks that pay.

    `work` is by default the attention call that the profiles are of. The split is `balanced` under caps, in multiples
    of `multiple` where that divides seq_len. Beside the fleet's own order, kinds of ranks in turn are tried, and up to
    ORDERED ranks slow first and slow last; the order simulated as fastest is taken. A rank is at most two steps ahead
    of its neighbours, so that fast ones in a row wait for slow ones in a row. Room for messages is reckoned for the
    longest shard.

    Raises ValueError for an unknown layout, a seq_len or multiple below 1, a fleet without the memory (saying by how
    many tokens), and whatever `Fleet.costs` refuses.
    """
    check_layout(layout)
    for name, value in (("seq_len", seq_len), ("multiple", multiple)):
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be 1 or more")
    work = work or fleet.attention()
    costs, notes = fleet.costs(work, seq_len)
    step = multiple if seq_len % multiple == 0 else 1
    candidates = [
        _split(fleet, work, costs, order, seq_len, layout, step) for order in _orders(alone_us(costs, seq_len))
    ]
    order, block_lens, found, full = min(candidates, key=lambda each: each[2].latency_us)
    ordered = [costs[rank] for rank in order]
    others = {name: split(name, seq_len, ordered, layout, step) for name in ("even", "proportional")}
    beside = {
        f"{layout}/{name}": Split(
            lens,
            work.layers * _simulated(fleet, work, ordered, order, Partition(layout, lens), multiple).latency_us / 1e3,
            all(
                used <= fleet.ranks[rank].memory_gb
                for used, rank in zip(_memory_gb(work, layout, lens), order, strict=True)
            ),
        )
        for name, lens in others.items()
    }
    bound_ms = work.layers * bound(ordered, seq_len) / 1e3
    latency_ms = work.layers * found.latency_us / 1e3
    return Plan(
        fleet=fleet,
        work=work,
        layout=layout,
        order=order,
        block_lens=block_lens,
        latency_ms=latency_ms,
        bound_ms=bound_ms,
        busy_ms=tuple((work.layers * found.busy_us / 1e3).tolist()),
        memory_gb=_memory_gb(work, layout, block_lens),
        limit=_limit(full, found, bound_ms / latency_ms),
        beside=beside,
        notes=notes,
        simulation=found,
    )


def bound(costs: Sequence[Cost], seq_len: int) -> float:
    """Least microseconds of one layer over these ranks, however its pairs and products are shared out."""
    attention = [cost.pair_us * total_pairs(seq_len) for cost in costs]
    return two_kind_bound(attention, [cost.token_us * seq_len for cost in costs])


def _orders(alone: Sequence[float]) -> list[tuple[int, ...]]:
    """Rank orders that are tried: the fleet's own, kinds in turn, and of few ranks slow first and slow last."""
    given = tuple(range(len(alone)))
    kinds: dict[float, list[int]] = {}
    for rank in given:
        kinds.setdefault(alone[rank], []).append(rank)
    place = {rank: (i + 0.5) / len(kind) for kind in kinds.values() for i, rank in enumerate(kind)}
    slow_last = tuple(sorted(given, key=alone.__getitem__))
    orders = [given, tuple(sorted(given, key=place.__getitem__)), slow_last[::-1], slow_last]
    return list(dict.fromkeys(orders if len(alone) <= ORDERED else orders[:2]))


def _split(
    fleet: Fleet, work: Work, costs: Sequence[Cost], order: tuple[int, ...], seq_len: int, layout: str, multiple: int
) -> tuple[tuple[int, ...], tuple[int, ...], Simulation, tuple[bool, ...]]:
    """The order; by place its tokens, and whether it has the memory for no more of them; and their simulation."""
    ordered = [costs[rank] for rank in order]
    memory = np.array([fleet.ranks[rank].memory_gb * 1e9 for rank in order]) - work.weight_bytes
    waits = {"margin": RING_MARGIN, "wait_us": RING_WAIT_US}
    lens = balanced(seq_len, ordered, layout, multiple=multiple, **waits)
    longest = max(lens)
    if any(length > room for length, room in zip(lens, _room(work, memory, longest), strict=True)):
        longest = _longest_shard(work, memory, seq_len, multiple)
        while True:  # a shorter longest shard leaves more room, and allows the same split as before
            most = _most(work, memory, longest, multiple)
            lens = balanced(seq_len, ordered, layout, multiple=multiple, most=most, **waits)
            if max(lens) == longest:
                break
            longest = max(lens)
    rooms = zip(lens, _room(work, memory, longest), strict=True)
    full = tuple(length > 0 and length + multiple > room for length, room in rooms)
    return order, lens, _simulated(fleet, work, ordered, order, Partition(layout, lens), multiple), full


def _room(work: Work, memory: np.ndarray, longest: int) -> list[float]:
    """Tokens that each rank has the memory for beside messages of `longest` keys."""
    return ((memory - work.memory_bytes(0, longest) + work.weight_bytes) // work.token_bytes).tolist()


def _most(work: Work, memory: np.ndarray, longest: int, multiple: int) -> list[int]:
    """The most tokens of each rank, none of which may have more than `longest`."""
    return [int(min(max(room, 0), longest)) // multiple * multiple for room in _room(work, memory, longest)]


def _longest_shard(work: Work, memory: np.ndarray, seq_len: int, multiple: int) -> int:
    """How long the longest shard may be, so that all tokens fit beside messages of that length.

    Room for messages grows with it. So what a fleet can hold is greatest where some rank is just full; from there, as
    long as may be.
    """

    def held(longest: int) -> int:
        return sum(_most(work, memory, longest, multiple))

    each = memory // (work.memory_bytes(1, 1) - work.weight_bytes)
    shortest = max({int(min(max(room, 0), seq_len)) // multiple * multiple for room in each}, key=held)
    if held(shortest) < seq_len:
        raise ValueError(
            f"{work.name} of {seq_len} tokens does not fit: these ranks have the memory for {held(shortest)} tokens, "
            f"{seq_len - held(shortest)} too few"
        )
    units = range(shortest // multiple, seq_len // multiple + 1)
    return multiple * (units[bisect_left(units, True, key=lambda unit: held(unit * multiple) < seq_len) - 1])


def _simulated(
    fleet: Fleet, work: Work, costs: Sequence[Cost], order: tuple[int, ...], partition: Partition, multiple: int
) -> Simulation:
    """One layer. Tiles are half a multiple, which heads and tails of a zigzag then fill; copies need a single node."""
    transport = "copy-engine" if len(set(fleet.network.nodes)) == 1 else "p2p"
    network, tile = fleet.network.ordered(order), max(1, multiple // 2)
    return simulate(partition, costs, network, work.key_bytes, transport=transport, tile=tile)


def _memory_gb(work: Work, layout: str, block_lens: Sequence[int]) -> tuple[float, ...]:
    """Memory that each rank takes, in 10^9 bytes: messages have room for the longest one of all."""
    longest = max(int(step.keys.max()) for step in steps(Partition(layout, block_lens)))
    return tuple(work.memory_bytes(length, longest) / 1e9 for length in block_lens)


def _limit(full: Sequence[bool], found: Simulation, bound_fraction: float) -> str:
    """What keeps the plan from being faster, in words. full: which ranks have the memory for no more tokens."""
    if any(full) and bound_fraction < 1 - NEARLY:
        return f"memory: {sum(full)} of {len(full)} ranks hold as many tokens as fit"
    exposed = 1 - found.busy_us.max() / found.latency_us
    if exposed > NEARLY:
        return f"waiting: for keys to come, and for slots, the busiest rank waits {exposed:.0%} of the time"
    if bound_fraction < 1 - NEARLY:
        return f"ring steps: what they take besides pairs, and tiles that are not full, is {1 - bound_fraction:.0%}"
    return f"compute: all ranks together cannot be more than {1 / bound_fraction - 1:.1%} faster"
