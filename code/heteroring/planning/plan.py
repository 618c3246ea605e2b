"""A plan: which ranks of a fleet hold how many tokens, within their memory, and how long the work will take."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from heteroring.arguments import prefix_lengths
from heteroring.planning.candidates import ORDERED, CandidateRing, Candidates, Split, TooLarge
from heteroring.planning.chunks import middle, split_over
from heteroring.planning.fleet import Fleet
from heteroring.planning.simulate import Simulation
from heteroring.planning.splits import alone_us, bound, coarse, split
from heteroring.planning.work import Work
from heteroring.results.strategy import name_of
from heteroring.ring.partition import check_layout

# The fraction of a time or a memory that counts as all of it in the sentence on what limits a plan.
NEARLY = 0.05


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
        """The capacity bound over the latency, 1 at best."""
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
    """Plan a fleet: the split of `seq_len` tokens over some of its ranks that is fastest in simulation, of those tried.

    Tried are, each where every rank has the memory:

    - over all ranks `balanced`, `proportional` and `even`, in the order in which `balanced` is fastest;
    - `balanced` over fewer ranks, since `balanced` counts what ranks compute and not what they wait for: over each
      node; over the fastest half of the ranks, quarter, and so on; over as many of each node's ranks, which share its
      links; over the fastest rank that has room for all tokens; and up to ORDERED ranks over all nodes but one.

    Orders are the fleet's own, kinds of ranks in turn, and up to ORDERED ranks slow first and slow last.
    docs/planning.md explains each step.

    Args:
        fleet: The ranks and their network.
        seq_len: Tokens to split, 1 or more.
        work: What is computed; None for the attention call that the fleet's profiles are of.
        layout: "zigzag" or "contiguous".
        multiple: Tokens that `balanced` gives out at a time, where that divides what is split.
        chunk: Tokens that go through at a time, as in `ring_prefill(chunk=)`; None for all. A rank then holds the
            activations of its part of one chunk, and all chunks have the split made for the one in the middle.
        prefix_lens: Earlier tokens that each rank of the fleet holds and keeps; () for none. A rank with some is never
            left out.

    Returns:
        The plan.

    Raises:
        ValueError: For an unknown layout, a seq_len, multiple or chunk below 1, prefix_lens that are not a length per
            rank, a fleet with too little memory (by how many tokens), and whatever `Fleet.costs` refuses.
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
    candidates = Candidates(fleet, work, seq_len, layout, multiple, step, chunk, earlier, costs)

    whole = candidates.balanced(range(len(costs)), alone)
    over_all = {"balanced": candidates.outcome(whole)}
    for name in ("proportional", "even"):
        by_costs = partial(split, name, tokens, [costs[rank] for rank in whole.over], layout, step)
        share = split_over(by_costs, ahead, candidates.held(whole.over))
        over_all[name] = candidates.outcome(candidates.ring(name, whole.over, share))
    best = whole
    for part in candidates.parts(alone):
        if bound([costs[rank] for rank in part], tokens, ahead + sum(earlier)) < best.latency_us:
            with suppress(TooLarge):
                best = min(best, candidates.balanced(part, alone), key=lambda ring: ring.latency_us)
    tried = [each for name, each in over_all.items() if name == "balanced" or each.split.fits]
    tried += [candidates.outcome(best)] if best is not whole else []
    found = min(tried, key=lambda each: each.split.latency_ms)
    ring, calls, latency_ms = found.ring, found.calls, found.split.latency_ms
    busy_ms = tuple((work.layers * np.sum([call.simulation.busy_us for call in calls], axis=0) / 1e3).tolist())
    limit = _limit(ring.full, 1 - max(busy_ms) / latency_ms, candidates.bound_ms(calls, ring.order) / latency_ms)
    return Plan(
        fleet=fleet,
        work=work,
        layout=layout,
        split=ring.name,
        order=ring.order,
        block_lens=found.split.block_lens,
        latency_ms=latency_ms,
        bound_ms=candidates.bound_ms(calls, whole.over),
        busy_ms=busy_ms,
        memory_gb=found.memory_gb,
        limit="; ".join([limit, *_left_out(fleet, ring, whole, over_all["balanced"].split.latency_ms)]),
        beside={name_of(layout, name): each.split for name, each in over_all.items()},
        notes=(*notes, *coarse(tokens, len(costs), step)),
        chunk=chunk,
        prefix_lens=candidates.held(ring.order),
        simulations=tuple(call.simulation for call in calls),
    )


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


def _left_out(fleet: Fleet, ring: CandidateRing, whole: CandidateRing, whole_ms: float) -> list[str]:
    """Why the plan leaves ranks out, in words; empty if it does not.

    whole: the ring that `balanced` makes of the whole fleet, which takes whole_ms.
    """
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
