"""A plan: which ranks of a fleet hold how many tokens, within their memory, and how long the work will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heteroring.allocators.apportion import apportion
from heteroring.allocators.balanced import RING_MARGIN, RING_WAIT_US, balanced
from heteroring.allocators.costs import Cost
from heteroring.arguments import prefix_lengths
from heteroring.planning.chunks import Chunk, behind, chunks_over, middle, split_over
from heteroring.planning.fleet import Fleet
from heteroring.planning.memory import Memory, used_gb
from heteroring.planning.simulate import Simulation, simulate
from heteroring.planning.splits import alone_us, split
from heteroring.planning.work import Work
from heteroring.ring.bounds import two_kind_bound
from heteroring.ring.partition import Partition, check_layout
from heteroring.ring.workload import total_pairs

# Up to how many ranks more rank orders are tried, and steps are listed.
ORDERED = 64
# The fraction of a time or a memory that counts as all of it in the sentence on what limits a plan.
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

    Times are those of the whole work, all layers and chunks: `latency_ms` that of the last rank, transfers included,
    and `bound_ms` the least that any split of the same work over these ranks could take. `memory_gb` is in 10^9 bytes.
    `limit` says what keeps it from being faster, `beside` are other splits in the same order. The tokens follow those
    of `prefix_lens`, () for none, and are computed in chunks of `chunk`, all in the same shares, or at once for None;
    `simulations` are of one layer, with one call per chunk.
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
    chunk: int | None
    prefix_lens: tuple[int, ...]
    simulations: tuple[Simulation, ...]

    @property
    def bound_fraction(self) -> float:
        return self.bound_ms / self.latency_ms

    @property
    def waiting_ms(self) -> tuple[float, ...]:
        """Milliseconds until the last rank is done in which each rank does not compute."""
        return tuple(self.latency_ms - busy for busy in self.busy_ms)

    @property
    def title(self) -> str:
        """The title of a table or a picture of the plan."""
        chunks = f" in chunks of {self.chunk}" if len(self.simulations) > 1 else ""
        earlier = f" behind {sum(self.prefix_lens)}" if self.prefix_lens else ""
        return f"{self.work.name}, {sum(self.block_lens)} tokens{chunks}{earlier}, {self.layout}"

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON content; up to ORDERED ranks with the start and stop of each step of the last call."""
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
            "chunk": self.chunk,
            "prefix_lens": list(self.prefix_lens),
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
            last = self.simulations[-1]
            answer["step_ms"] = [
                [None if np.isnan(start) else [start / 1e3, stop / 1e3] for start, stop in zip(*each, strict=True)]
                for each in zip(last.starts_us.tolist(), last.stops_us.tolist(), strict=True)
            ]
        return answer


def plan(
    fleet: Fleet,
    seq_len: int,
    work: Work | None = None,
    *,
    layout: str = "zigzag",
    multiple: int = 256,
    chunk: int | None = None,
    prefix_lens: Sequence[int] = (),
) -> Plan:
    """The fastest split of `seq_len` tokens that fits into every rank's memory, without ranks that slow the ring down.

    `work` is by default the attention call that was profiled. The split is `balanced` under caps, in multiples
    of `multiple` where that divides seq_len. Beside the fleet's own order, kinds of ranks in turn are tried, and up to
    ORDERED ranks slow first and slow last; the order simulated as fastest is taken. The order matters because a rank is
    at most two steps ahead of its neighbours: where fast ranks and slow ranks are adjacent, the fast ones wait. Message
    buffers are as long as the longest shard.

    With `chunk`, the tokens are computed in chunks of so many, as in `ring_prefill(chunk=)`: a rank holds the
    activations of its part of one chunk. All chunks have the same split, `balanced` for the chunk in the middle, by
    which multiples and the order are chosen, too. `prefix_lens` are earlier tokens that each rank of the fleet holds,
    and keeps.

    Raises ValueError for an unknown layout, a seq_len, multiple or chunk below 1, prefix_lens that are not a length per
    rank, a fleet with too little memory (saying by how many tokens), and whatever `Fleet.costs` refuses.
    """
    check_layout(layout)
    for name, value in (("seq_len", seq_len), ("multiple", multiple)):
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be 1 or more")
    earlier = prefix_lengths("prefix_lens", prefix_lens, len(fleet.ranks))
    tokens, ahead = middle(seq_len, chunk)
    step = multiple if tokens % multiple == 0 else 1
    job = _Job(fleet, work or fleet.attention(), seq_len, layout, multiple, step, chunk, earlier)
    costs, notes = fleet.costs(job.work, tokens, ahead + sum(earlier))
    order, share, full = min(
        (job.split(order, costs) for order in _orders(alone_us(costs, tokens, ahead + sum(earlier)))),
        key=lambda each: job.middle_call(*each[:2]).simulation.latency_us,
    )
    calls = job.calls(order, share)
    beside = {}
    for name in ("even", "proportional"):
        held = behind(job.held(order), share, ahead)
        lens = split(name, tokens, [costs[rank] for rank in order], layout, step, held)
        others = job.calls(order, lens)
        used = zip(used_gb(job.work, [call.chunk for call in others]), order, strict=True)
        fits = all(gigabytes <= fleet.ranks[rank].memory_gb for gigabytes, rank in used)
        beside[f"{layout}/{name}"] = Split(apportion(lens, seq_len), job.latency_ms(others), fits)
    bounds_us = [bound(call.costs, call.chunk.partition.seq_len, sum(call.chunk.prefix_lens)) for call in calls]
    bound_ms, latency_ms = job.work.layers * sum(bounds_us) / 1e3, job.latency_ms(calls)
    busy_us = sum(call.simulation.busy_us for call in calls)
    busy_ms = tuple((job.work.layers * busy_us / 1e3).tolist())
    return Plan(
        fleet=fleet,
        work=job.work,
        layout=layout,
        order=order,
        block_lens=apportion(share, seq_len),
        latency_ms=latency_ms,
        bound_ms=bound_ms,
        busy_ms=busy_ms,
        memory_gb=used_gb(job.work, [call.chunk for call in calls]),
        limit=_limit(full, 1 - max(busy_ms) / latency_ms, bound_ms / latency_ms),
        beside=beside,
        notes=notes,
        chunk=chunk,
        prefix_lens=job.held(order),
        simulations=tuple(call.simulation for call in calls),
    )


def bound(costs: Sequence[Cost], seq_len: int, earlier: int = 0) -> float:
    """Least microseconds of one layer over these ranks, however its pairs and products are shared out.

    The tokens follow `earlier` ones, which they all see.
    """
    pairs = total_pairs(seq_len) + seq_len * earlier
    return two_kind_bound([cost.pair_us * pairs for cost in costs], [cost.token_us * seq_len for cost in costs])


def _orders(alone: Sequence[float]) -> list[tuple[int, ...]]:
    """Rank orders that are tried: the fleet's own, kinds in turn, and for few ranks slow first and slow last."""
    given = tuple(range(len(alone)))
    kinds: dict[float, list[int]] = {}
    for rank in given:
        kinds.setdefault(alone[rank], []).append(rank)
    place = {rank: (i + 0.5) / len(kind) for kind in kinds.values() for i, rank in enumerate(kind)}
    slow_last = tuple(sorted(given, key=alone.__getitem__))
    orders = [given, tuple(sorted(given, key=place.__getitem__)), slow_last[::-1], slow_last]
    return list(dict.fromkeys(orders if len(alone) <= ORDERED else orders[:2]))


@dataclass(frozen=True)
class _Call:
    """One call of a plan: its chunk, the costs of the ranks by place, and one layer simulated."""

    chunk: Chunk
    costs: list[Cost]
    simulation: Simulation


@dataclass(frozen=True)
class _Job:
    """What is to be planned. `prefix_lens` go by rank of the fleet; splits and what follows from them by place."""

    fleet: Fleet
    work: Work
    seq_len: int
    layout: str
    multiple: int
    step: int
    chunk: int | None
    prefix_lens: tuple[int, ...]

    def held(self, order: tuple[int, ...]) -> tuple[int, ...]:
        """The earlier tokens by place."""
        return tuple(self.prefix_lens[rank] for rank in order) if self.prefix_lens else ()

    def split(
        self, order: tuple[int, ...], costs: Sequence[Cost]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
        """The order; and by place the tokens of the chunk in the middle, and whether the rank's memory is full."""
        tokens, ahead = middle(self.seq_len, self.chunk)
        ordered = [costs[rank] for rank in order]
        memory_gb = [self.fleet.ranks[rank].memory_gb for rank in order]
        memory = Memory.of(self.work, memory_gb, self.seq_len / tokens, self.held(order))

        def lens_of(most: Sequence[int] | None = None) -> tuple[int, ...]:
            return split_over(
                lambda held: balanced(
                    tokens,
                    ordered,
                    self.layout,
                    multiple=self.step,
                    margin=RING_MARGIN,
                    wait_us=RING_WAIT_US,
                    most=most,
                    prefix_lens=held,
                ),
                ahead,
                self.held(order),
            )

        lens = lens_of()
        longest = max(lens)
        if any(length > room for length, room in zip(lens, memory.room(longest), strict=True)):
            longest, fit = memory.longest_shard(tokens, self.step)
            if fit < tokens:
                fit = fit * self.seq_len // tokens
                raise ValueError(
                    f"{self.work.name} of {self.seq_len} tokens does not fit: these ranks have the memory for {fit} "
                    f"tokens, {self.seq_len - fit} too few"
                )
            while True:  # a shorter longest shard leaves more room, and allows the same split as before
                lens = lens_of(memory.most(longest, self.step))
                if max(lens) == longest:
                    break
                longest = max(lens)
        rooms = zip(lens, memory.room(longest), strict=True)
        return order, lens, tuple(length > 0 and length + self.step > room for length, room in rooms)

    def middle_call(self, order: tuple[int, ...], share: tuple[int, ...]) -> _Call:
        """The chunk in the middle, split into `share`, behind those that were split alike."""
        _, ahead = middle(self.seq_len, self.chunk)
        return self._call(order, Chunk(Partition(self.layout, share), behind(self.held(order), share, ahead)))

    def calls(self, order: tuple[int, ...], share: tuple[int, ...]) -> list[_Call]:
        """All calls, where tokens are split in the shares of `share`."""
        whole = Partition(self.layout, apportion(share, self.seq_len))
        return [self._call(order, each) for each in chunks_over(whole, self.chunk, self.held(order))]

    def _call(self, order: tuple[int, ...], chunk: Chunk) -> _Call:
        """Simulate one call. Tiles are half a multiple, which a zigzag's heads and tails fill; copies need one node."""
        costs, _ = self.fleet.costs(self.work, chunk.partition.seq_len, sum(chunk.prefix_lens))
        ordered, network = [costs[rank] for rank in order], self.fleet.network
        simulation = simulate(
            chunk.partition,
            ordered,
            network.ordered(order),
            self.work.key_bytes,
            transport="copy-engine" if len(set(network.nodes)) == 1 else "p2p",
            tile=max(1, self.multiple // 2),
            prefix_lens=chunk.prefix_lens,
        )
        return _Call(chunk, ordered, simulation)

    def latency_ms(self, calls: Sequence[_Call]) -> float:
        """Milliseconds of all layers of all calls, one after the other."""
        return self.work.layers * sum(call.simulation.latency_us for call in calls) / 1e3


def _limit(full: Sequence[bool], exposed: float, bound_fraction: float) -> str:
    """What keeps the plan from being faster, in words.

    full: which ranks have the memory for no more tokens; exposed: the part of the time that the busiest one waits.
    """
    if any(full) and bound_fraction < 1 - NEARLY:
        return f"memory: {sum(full)} of {len(full)} ranks hold as many tokens as fit"
    if exposed > NEARLY:
        return f"waiting: for keys to come, and for slots, the busiest rank waits {exposed:.0%} of the time"
    if bound_fraction < 1 - NEARLY:
        return f"ring steps: what they take besides pairs, and tiles that are not full, is {1 - bound_fraction:.0%}"
    return f"compute: all ranks together cannot be more than {1 / bound_fraction - 1:.1%} faster"
