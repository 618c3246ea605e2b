"""A plan: which ranks of a fleet hold how many tokens, within their memory, and how long the work will take."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
from heteroring.planning.splits import alone_us, coarse, split
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
    """Tokens by place in a ring of ranks `order`, the milliseconds of the work, and whether it fits in memory."""

    order: tuple[int, ...]
    block_lens: tuple[int, ...]
    latency_ms: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """A split of `seq_len` tokens over a fleet. All tuples go by place in the ring; order[i] is the rank at place i.

    Ranks of the fleet that are not in the order are left out, and need not be started. `split` is one of SPLITS. Times
    are those of the whole work, all layers and chunks: `latency_ms` that of the last rank, transfers included, and
    `bound_ms` the least that any split of the same work over the whole fleet could take. `memory_gb` is in 10^9 bytes.
    `limit` says what keeps it from being faster, and why ranks are left out; `beside` are the splits over all ranks.
    The tokens follow those of `prefix_lens`, () for none, and go through in chunks of `chunk`, all in the same shares,
    or at once for None; `simulations` are of one layer, a call for each chunk.
    """

    fleet: Fleet
    work: Work
    layout: str
    split: str
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
    def left_out(self) -> tuple[int, ...]:
        """The ranks of the fleet that are not in the ring."""
        return tuple(sorted(set(range(len(self.fleet.ranks))) - set(self.order)))

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
            "split": self.split,
            "order": list(self.order),
            "left_out": list(self.left_out),
            "block_lens": list(self.block_lens),
            "chunk": self.chunk,
            "prefix_lens": list(self.prefix_lens),
            "latency_ms": self.latency_ms,
            "bound_ms": self.bound_ms,
            "bound_fraction": self.bound_fraction,
            "limit": self.limit,
            "ranks": ranks,
            "beside": {
                name: {
                    "latency_ms": split.latency_ms,
                    "fits": split.fits,
                    "order": list(split.order),
                    "block_lens": list(split.block_lens),
                }
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
    """The split of `seq_len` tokens over some of the ranks that is simulated as the fastest of those tried.

    `work` is by default the attention call that the profiles are of. Tried are, each where every rank has the memory:

    - over all ranks `balanced`, `proportional` and `even`, in the order in which `balanced` is fastest;
    - `balanced` over fewer, since `balanced` knows what ranks compute and not what they wait for: over each node; the
      fastest half of the ranks, quarter, and so on; as many of each node's ranks, which share its links; the fastest
      rank that has room for all tokens; and up to ORDERED ranks over all nodes but one.

    Orders are the fleet's own, kinds of ranks in turn, and up to ORDERED ranks slow first and slow last. The order
    matters because a rank is at most two steps ahead of its neighbours: where fast ranks and slow ranks are adjacent,
    the fast ones wait.

    `balanced` is in multiples of `multiple` where that divides seq_len, and under caps of memory, in which message
    buffers are as long as the longest shard. It leaves out ranks that cost the others more than they bring.

    With `chunk`, the tokens go through in chunks of so many, as in `ring_prefill(chunk=)`: a rank holds the activations
    of its part of one. There is one split for all of them, made for the one in the middle, by which the order and the
    fewer ranks are chosen, too. `prefix_lens` are earlier tokens that each rank of the fleet holds, and keeps: a rank
    with some is never left out.

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
    work = work or fleet.attention()
    costs, notes = fleet.costs(work, tokens, ahead + sum(earlier))
    alone = alone_us(costs, tokens, ahead + sum(earlier))
    job = _Job(fleet, work, seq_len, layout, multiple, step, chunk, earlier, costs)

    whole = job.balanced(range(len(costs)), alone)
    over_all = {"balanced": job.outcome(whole)}
    for name in ("proportional", "even"):
        by_costs = partial(split, name, tokens, [costs[rank] for rank in whole.over], layout, step)
        share = split_over(by_costs, ahead, job.held(whole.over))
        over_all[name] = job.outcome(job.ring(name, whole.over, share))
    best = whole
    for part in job.parts(alone):
        if bound([costs[rank] for rank in part], tokens, ahead + sum(earlier)) < best.latency_us:
            with suppress(_TooLarge):
                best = min(best, job.balanced(part, alone), key=lambda ring: ring.latency_us)
    tried = [each for name, each in over_all.items() if name == "balanced" or each.split.fits]
    tried += [job.outcome(best)] if best is not whole else []
    found = min(tried, key=lambda each: each.split.latency_ms)
    ring, calls, latency_ms = found.ring, found.calls, found.split.latency_ms
    busy_ms = tuple((work.layers * np.sum([call.simulation.busy_us for call in calls], axis=0) / 1e3).tolist())
    limit = _limit(ring.full, 1 - max(busy_ms) / latency_ms, job.bound_ms(calls, ring.order) / latency_ms)
    return Plan(
        fleet=fleet,
        work=work,
        layout=layout,
        split=ring.name,
        order=ring.order,
        block_lens=found.split.block_lens,
        latency_ms=latency_ms,
        bound_ms=job.bound_ms(calls, whole.over),
        busy_ms=busy_ms,
        memory_gb=found.memory_gb,
        limit="; ".join([limit, *_left_out(fleet, ring, whole, over_all["balanced"].split.latency_ms)]),
        beside={f"{layout}/{name}": each.split for name, each in over_all.items()},
        notes=(*notes, *coarse(tokens, len(costs), step)),
        chunk=chunk,
        prefix_lens=job.held(ring.order),
        simulations=tuple(call.simulation for call in calls),
    )


def bound(costs: Sequence[Cost], seq_len: int, earlier: int = 0) -> float:
    """Least microseconds of one layer over these ranks, however its pairs and products are shared out.

    The tokens follow `earlier` ones, which they all see.
    """
    pairs = total_pairs(seq_len) + seq_len * earlier
    return two_kind_bound([cost.pair_us * pairs for cost in costs], [cost.token_us * seq_len for cost in costs])


def _orders(ranks: Sequence[int], alone: Sequence[float]) -> list[tuple[int, ...]]:
    """Orders of ranks that are tried: the fleet's own, kinds in turn, and of few ranks slow first and slow last."""
    kinds: dict[float, list[int]] = {}
    for rank in ranks:
        kinds.setdefault(alone[rank], []).append(rank)
    place = {rank: (i + 0.5) / len(kind) for kind in kinds.values() for i, rank in enumerate(kind)}
    slow_last = tuple(sorted(ranks, key=alone.__getitem__))
    orders = [tuple(ranks), tuple(sorted(ranks, key=place.__getitem__)), slow_last[::-1], slow_last]
    return list(dict.fromkeys(orders if len(ranks) <= ORDERED else orders[:2]))


class _TooLarge(ValueError):
    """Ranks have too little memory."""


@dataclass(frozen=True)
class _Call:
    """One call of a plan: its chunk, and one layer simulated."""

    chunk: Chunk
    simulation: Simulation


@dataclass(frozen=True)
class _Ring:
    """A split that is tried: `share`, the tokens of the chunk in the middle, and the simulated `call` of that.

    It is `over` ranks in order, of which `order` are those that take part; `full` says which of these have the memory
    for no more, and only of `balanced`.
    """

    name: str
    over: tuple[int, ...]
    order: tuple[int, ...]
    share: tuple[int, ...]
    full: tuple[bool, ...]
    call: _Call

    @property
    def latency_us(self) -> float:
        return self.call.simulation.latency_us


@dataclass(frozen=True)
class _Outcome:
    """What comes of a ring: all of its calls, the memory of each rank, and it as a `Split`."""

    ring: _Ring
    calls: list[_Call]
    memory_gb: tuple[float, ...]
    split: Split


@dataclass(frozen=True)
class _Job:
    """What is to be planned. `prefix_lens` and `costs` go by rank of the fleet; rings and what follows by place."""

    fleet: Fleet
    work: Work
    seq_len: int
    layout: str
    multiple: int
    step: int
    chunk: int | None
    prefix_lens: tuple[int, ...]
    costs: Sequence[Cost]

    def held(self, order: Sequence[int]) -> tuple[int, ...]:
        """The earlier tokens by place."""
        return tuple(self.prefix_lens[rank] for rank in order) if self.prefix_lens else ()

    def memory(self, order: Sequence[int]) -> Memory:
        """The memory of ranks by place."""
        tokens, _ = middle(self.seq_len, self.chunk)
        memory_gb = [self.fleet.ranks[rank].memory_gb for rank in order]
        return Memory.of(self.work, memory_gb, self.seq_len / tokens, self.held(order))

    def parts(self, alone: Sequence[float]) -> list[tuple[int, ...]]:
        """Fewer ranks than all, by number: those that `plan` tries, and with them those that hold earlier tokens."""
        ranks, links, count = self.fleet.ranks, self.fleet.network.links, len(alone)
        fastest = sorted(range(count), key=alone.__getitem__)
        nodes: dict[str, list[int]] = {}
        for rank in fastest:
            nodes.setdefault(ranks[rank].node, []).append(rank)
        parts = []
        for halved in range(1, count.bit_length()):
            parts.append([rank for node in nodes.values() for rank in node[: max(1, len(node) >> halved)]])
            parts.append(fastest[: count >> halved])
        tokens, _ = middle(self.seq_len, self.chunk)
        room = self.memory(fastest).room(tokens)
        parts += [[rank] for rank, most in zip(fastest, room, strict=True) if most >= tokens][:1]
        unlike = {
            (links.get((node, node)), *((self.costs[rank], ranks[rank].memory_gb) for rank in members)): members
            for node, members in nodes.items()
        }
        parts += unlike.values()
        if count <= ORDERED:
            parts += [[rank for rank in range(count) if ranks[rank].node != node] for node in nodes]
        holders = {rank for rank, length in enumerate(self.prefix_lens) if length}
        sets = dict.fromkeys(tuple(sorted(holders | set(part))) for part in parts)
        return [part for part in sets if 0 < len(part) < count]

    def balanced(self, ranks: Sequence[int], alone: Sequence[float]) -> _Ring:
        """The balanced split over ranks, in the fastest order. Raises _TooLarge if they have too little memory."""
        return min((self._balanced(order) for order in _orders(ranks, alone)), key=lambda ring: ring.latency_us)

    def _balanced(self, order: tuple[int, ...]) -> _Ring:
        tokens, ahead = middle(self.seq_len, self.chunk)
        ordered, memory = [self.costs[rank] for rank in order], self.memory(order)

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
                raise _TooLarge(
                    f"{self.work.name} of {self.seq_len} tokens does not fit: these ranks have the memory for {fit} "
                    f"tokens, {self.seq_len - fit} too few"
                )
            while True:  # a shorter longest shard leaves more room, and allows the same split as before
                lens = lens_of(memory.most(longest, self.step))
                if max(lens) == longest:
                    break
                longest = max(lens)
        rooms = zip(lens, memory.room(longest), strict=True)
        full = tuple(length > 0 and length + self.step > room for length, room in rooms)
        return self.ring("balanced", order, lens, full)

    def ring(self, name: str, over: tuple[int, ...], share: tuple[int, ...], full: tuple[bool, ...] = ()) -> _Ring:
        """The ring of those ranks that get tokens or hold earlier ones."""
        _, ahead = middle(self.seq_len, self.chunk)
        places = [i for i, rank in enumerate(over) if share[i] or (self.prefix_lens and self.prefix_lens[rank])]
        order, share, full = (tuple(each[i] for i in places if each) for each in (over, share, full))
        call = self._call(order, Chunk(Partition(self.layout, share), behind(self.held(order), share, ahead)))
        return _Ring(name, over, order, share, full, call)

    def outcome(self, ring: _Ring) -> _Outcome:
        """All calls, where tokens are split in the shares of the ring's one."""
        tokens, _ = middle(self.seq_len, self.chunk)
        calls, lens = [ring.call], ring.share
        if tokens < self.seq_len:
            lens = apportion(ring.share, self.seq_len)
            chunks = chunks_over(Partition(self.layout, lens), self.chunk, self.held(ring.order))
            calls = [self._call(ring.order, each) for each in chunks]
        longest = max(call.simulation.longest_message for call in calls)
        memory_gb = used_gb(self.work, [call.chunk for call in calls], longest)
        fits = all(used <= self.fleet.ranks[rank].memory_gb for used, rank in zip(memory_gb, ring.order, strict=True))
        latency_ms = self.work.layers * sum(call.simulation.latency_us for call in calls) / 1e3
        return _Outcome(ring, calls, memory_gb, Split(ring.order, lens, latency_ms, fits))

    def _call(self, order: tuple[int, ...], chunk: Chunk) -> _Call:
        """Simulate one call. Tiles are half a multiple, which a zigzag's heads and tails fill; copies need one node."""
        costs, _ = self.fleet.costs(self.work, chunk.partition.seq_len, sum(chunk.prefix_lens))
        network = self.fleet.network.ordered(order)
        simulation = simulate(
            chunk.partition,
            [costs[rank] for rank in order],
            network,
            self.work.key_bytes,
            transport="copy-engine" if len(set(network.nodes)) == 1 else "p2p",
            tile=max(1, self.multiple // 2),
            prefix_lens=chunk.prefix_lens,
        )
        return _Call(chunk, simulation)

    def bound_ms(self, calls: Sequence[_Call], ranks: Sequence[int]) -> float:
        """The least milliseconds of all layers of the calls over these ranks of the fleet."""
        least_us = 0.0
        for chunk in (call.chunk for call in calls):
            tokens, earlier = chunk.partition.seq_len, sum(chunk.prefix_lens)
            costs, _ = self.fleet.costs(self.work, tokens, earlier)
            least_us += bound([costs[rank] for rank in ranks], tokens, earlier)
        return self.work.layers * least_us / 1e3


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
    return f"compute: its ranks together cannot be more than {1 / bound_fraction - 1:.1%} faster"


def _left_out(fleet: Fleet, ring: _Ring, whole: _Ring, whole_ms: float) -> list[str]:
    """Why the ring is not of all ranks, in words. `whole` is the balanced one of all that pay, of `whole_ms`."""
    count = len(fleet.ranks)
    if len(ring.order) == count:
        return []
    said = f"{count - len(ring.order)} of {count} ranks left out: "
    if len(ring.order) >= len(whole.order):
        return [f"{said}they would cost the others more than they bring"]
    nodes = sorted({fleet.ranks[rank].node for rank in whole.order})
    over = {1: "", 2: f" over the link {'-'.join(nodes)}"}.get(len(nodes), " over the links between nodes")
    waits = 1 - whole.call.simulation.busy_us.max() / whole.latency_us
    waiting = f", {waits:.0%} of them waiting for keys{over}" if waits > NEARLY else ""
    return [f"{said}a ring of {len(whole.order)} takes {whole_ms:.4g} ms{waiting}"]
