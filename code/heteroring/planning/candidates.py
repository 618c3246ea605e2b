"""The splits that a plan tries: over all ranks and over fewer, in several orders, each simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heteroring.allocators.apportion import apportion
from heteroring.allocators.balanced import RING_MARGIN, RING_WAIT_US, balanced
from heteroring.allocators.unit_costs import Cost
from heteroring.planning.chunks import Chunk, behind, chunks_over, middle, split_over
from heteroring.planning.fleet import Fleet
from heteroring.planning.memory import Memory, used_gb
from heteroring.planning.simulate import Simulation, simulate
from heteroring.planning.splits import bound
from heteroring.planning.work import Work
from heteroring.ring.partition import Partition

# Up to how many ranks all rank orders and parts are tried, and the steps are listed.
ORDERED = 64


@dataclass(frozen=True)
class Split:
    """Tokens by place in a ring of ranks `order`, the milliseconds of the work, and whether it fits in memory."""

    order: tuple[int, ...]
    block_lens: tuple[int, ...]
    latency_ms: float
    fits: bool


class TooLarge(ValueError):
    """Ranks have too little memory."""


@dataclass(frozen=True)
class SimulatedCall:
    """One call of a plan: its chunk, and one layer simulated."""

    chunk: Chunk
    simulation: Simulation


@dataclass(frozen=True)
class CandidateRing:
    """A split that is tried: `share`, the tokens of the chunk in the middle, and the simulated `call` of that chunk.

    The tokens were split over the ranks `over`; `order` are those of them that take part. `full` says which of these
    have no memory for more tokens; it is empty but for `balanced`.
    """

    name: str
    over: tuple[int, ...]
    order: tuple[int, ...]
    share: tuple[int, ...]
    full: tuple[bool, ...]
    call: SimulatedCall

    @property
    def latency_us(self) -> float:
        return self.call.simulation.latency_us


@dataclass(frozen=True)
class Outcome:
    """The result of a ring: all of its calls, the memory of each rank, and the ring as a `Split`."""

    ring: CandidateRing
    calls: list[SimulatedCall]
    memory_gb: tuple[float, ...]
    split: Split


@dataclass(frozen=True)
class Candidates:
    """What is to be planned, and the splits of it to try.

    `prefix_lens` and `costs` go by rank of the fleet; rings and what follows from them by place.
    """

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
        """The smaller sets of ranks that `plan` tries, each with the ranks that hold earlier tokens."""
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

    def balanced(self, ranks: Sequence[int], alone: Sequence[float]) -> CandidateRing:
        """The balanced split over some of the ranks, in the fastest order.

        Args:
            ranks: Ranks of the fleet.
            alone: Microseconds of each rank of the fleet for the chunk in the middle alone, by which orders are sorted.

        Returns:
            The ring that is simulated as the fastest.

        Raises:
            TooLarge: If the ranks have too little memory.
        """
        return min((self._balanced(order) for order in _orders(ranks, alone)), key=lambda ring: ring.latency_us)

    def _balanced(self, order: tuple[int, ...]) -> CandidateRing:
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

        def ring(lens: tuple[int, ...]) -> CandidateRing:
            rooms = zip(lens, memory.room(max(lens)), strict=True)
            return self.ring("balanced", order, lens, tuple(0 < length > room - self.step for length, room in rooms))

        lens = lens_of()
        if all(length <= room for length, room in zip(lens, memory.room(max(lens)), strict=True)):
            return ring(lens)
        lengths, fit = memory.longest_shards(tokens, self.step)
        if not lengths:
            fit = fit * self.seq_len // tokens
            raise TooLarge(
                f"{self.work.name} of {self.seq_len} tokens does not fit: these ranks have the memory for {fit} "
                f"tokens, {self.seq_len - fit} too few"
            )
        found = set()
        for longest in lengths:
            # A shorter longest shard leaves more room, and allows the same split as before.
            while max(lens := lens_of(memory.most(longest, self.step))) < longest:
                longest = max(lens)
            found.add(lens)
        return min(map(ring, sorted(found)), key=lambda each: each.latency_us)

    def ring(
        self, name: str, over: tuple[int, ...], share: tuple[int, ...], full: tuple[bool, ...] = ()
    ) -> CandidateRing:
        """The ring of those ranks `over` that get tokens or hold earlier ones, simulated.

        Args:
            name: The split, one of SPLITS.
            over: Ranks of the fleet, in the order of the ring.
            share: Tokens of the chunk in the middle, by place in `over`.
            full: Whether each rank of `over` has the memory for no more tokens; () where that is not known.

        Returns:
            The ring.
        """
        _, ahead = middle(self.seq_len, self.chunk)
        places = [i for i, rank in enumerate(over) if share[i] or (self.prefix_lens and self.prefix_lens[rank])]
        order, share, full = (tuple(each[i] for i in places if each) for each in (over, share, full))
        call = self._call(order, Chunk(Partition(self.layout, share), behind(self.held(order), share, ahead)))
        return CandidateRing(name, over, order, share, full, call)

    def outcome(self, ring: CandidateRing) -> Outcome:
        """The result of a ring, with every chunk split in the shares of the ring's own."""
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
        return Outcome(ring, calls, memory_gb, Split(ring.order, lens, latency_ms, fits))

    def _call(self, order: tuple[int, ...], chunk: Chunk) -> SimulatedCall:
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
        return SimulatedCall(chunk, simulation)

    def bound_ms(self, calls: Sequence[SimulatedCall], ranks: Sequence[int]) -> float:
        """The least time of some calls, however their work is split.

        Args:
            calls: The calls.
            ranks: Ranks of the fleet that share the work.

        Returns:
            Milliseconds of all layers.
        """
        least_us = 0.0
        for chunk in (call.chunk for call in calls):
            tokens, earlier = chunk.partition.seq_len, sum(chunk.prefix_lens)
            costs, _ = self.fleet.costs(self.work, tokens, earlier)
            least_us += bound([costs[rank] for rank in ranks], tokens, earlier)
        return self.work.layers * least_us / 1e3


def _orders(ranks: Sequence[int], alone: Sequence[float]) -> list[tuple[int, ...]]:
    """Orders of ranks that are tried: the fleet's own, kinds in turn, and of few ranks slow first and slow last."""
    kinds: dict[float, list[int]] = {}
    for rank in ranks:
        kinds.setdefault(alone[rank], []).append(rank)
    place = {rank: (i + 0.5) / len(kind) for kind in kinds.values() for i, rank in enumerate(kind)}
    slow_last = tuple(sorted(ranks, key=alone.__getitem__))
    orders = [tuple(ranks), tuple(sorted(ranks, key=place.__getitem__)), slow_last[::-1], slow_last]
    return list(dict.fromkeys(orders if len(ranks) <= ORDERED else orders[:2]))
