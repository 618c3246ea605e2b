"""Simulation of a ring call: each rank's compute and waiting, and the messages on each link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heteroring.allocators.unit_costs import Cost
from heteroring.arguments import prefix_lengths
from heteroring.planning.network import Network
from heteroring.planning.steps import Costs, Step, step_us, steps
from heteroring.ring.partition import Partition
from heteroring.ring.transport.limits import PART_BYTES, SLOTS, TRANSPORTS


@dataclass(frozen=True)
class Simulation:
    """Microseconds of one call, [ranks] each: `busy_us` computing, `end_us` when a rank is done.

    starts_us and stops_us, [steps, ranks], are those of each step's compute, and arrivals_us is when its KV is there;
    NaN where a rank has nothing to do, or nothing comes. `longest_message` is in keys.
    """

    busy_us: np.ndarray
    end_us: np.ndarray
    starts_us: np.ndarray
    stops_us: np.ndarray
    arrivals_us: np.ndarray
    longest_message: int

    @property
    def latency_us(self) -> float:
        """When the last rank is done."""
        return float(self.end_us.max())

    @property
    def waiting_us(self) -> np.ndarray:
        """Microseconds until the last rank is done in which each rank does not compute."""
        return self.latency_us - self.busy_us


def simulate(
    partition: Partition,
    costs: Sequence[Cost],
    network: Network,
    key_bytes: int,
    *,
    transport: str = "copy-engine",
    fused: bool = True,
    host_us: float = 0.0,
    tile: int = 1,
    work_us: np.ndarray | None = None,
    prefix_lens: Sequence[int] = (),
) -> Simulation:
    """Simulate one causal call over `partition`.

    A rank first does its tokens' other work (`Cost.token_us`); then its keys can be read. Its steps follow in ring
    order, each as soon as its KV is there and the one before is done. Message s goes straight from its owner when
    reader and owner are done with step s - 2, so that a slot is free. Between nodes, messages queue for the owner's
    node and then for the reader's, step by step, within a step in the order in which they can go.

    - `copy-engine`: a message takes the link's latency for each part of some 8 MB, and the time of its bytes. If
      `fused`, the first two steps are one pass that waits for parts as it reaches them: it ends no earlier than its
      compute time after the first part's arrival, and the last part's share of that time after the last part's.
    - `p2p`: sender and receiver wait for one another, and nothing is fused.

    Not modelled: SMs and memory bandwidth that transfers take from compute, and changes of clock rates.

    Args:
        partition: Which tokens each rank holds.
        costs: Microseconds of each kind of work, by rank.
        network: The node of each rank, and the links.
        key_bytes: Bytes of one token's key and value.
        transport: "copy-engine" or "p2p".
        fused: Whether the first two steps are one pass, where the transport allows it.
        host_us: Microseconds that the host needs to issue one step; no step starts before.
        tile: Queries and keys of a tile of the kernel; one that is not full takes as long as a full one.
        work_us: Microseconds that each rank computes in each step, [steps, ranks], in place of those by `costs`.
        prefix_lens: Earlier tokens that each rank holds and all tokens of the partition see; () for none.

    Returns:
        When each rank computes and waits.

    Raises:
        ValueError: For an unknown transport, and if costs, network or prefix_lens are not those of the partition's
            ranks.
    """
    ranks = partition.world_size
    if transport not in TRANSPORTS:
        raise ValueError(f"transport {transport!r} is unknown: choose one of {', '.join(TRANSPORTS)}")
    for name, count in (("costs", len(costs)), ("nodes", len(network.nodes))):
        if count != ranks:
            raise ValueError(f"{count} {name} for {ranks} ranks: one per rank is needed")
    earlier = prefix_lengths("prefix_lens", prefix_lens, ranks)
    copies = transport == "copy-engine"
    fused = fused and copies
    each, lines = Costs.of(costs), _Lines(network, key_bytes, copies)
    starts, stops, arrivals = np.full((3, ranks, ranks), np.nan)
    ready = each.token_us * np.array(partition.block_lens)  # each rank's keys
    done, before, busy = ready.copy(), ready.copy(), ready.copy()  # done with this step, and with the one before it
    lane = ready.copy()  # when each rank can send or receive its next message, one after the other
    held = None  # compute times of the first step, where it is fused with the second
    longest = 0
    for number, step in enumerate(steps(partition, tile, earlier)):
        work, later = step_us(step, number, each) if work_us is None else (work_us[number], 0.0)
        has_work = step.rows > 0
        begin = np.maximum(done, host_us * (number + 1))
        if number:
            longest = max(longest, step.keys.max())
            free = before if number > SLOTS else ready
            first, last, lane = lines.carry(step, free, lane)
            arrivals[number, step.keys > 0] = last[step.keys > 0]
        if number == 1 and fused:
            own = held
            fuses = has_work & (own > 0)
            shares = lines.parts(step.keys)
            total = np.where(fuses, own + work - later, own)
            whole = np.maximum(np.maximum(begin, first) + total, last + total / shares) + later
            stop = np.where(fuses, whole, begin + own)
            stop = np.where(has_work & ~fuses, np.maximum(begin, last) + work, stop)
            starts[0, own > 0], stops[0, own > 0] = begin[own > 0], stop[own > 0]
            alone = has_work & ~fuses
            starts[1, alone], stops[1, alone] = (stop - work)[alone], stop[alone]
        elif number == 0 and fused and ranks > 1:
            held, stop = work, done
        else:
            begin = np.maximum(begin, np.where(step.keys > 0, last, 0.0)) if number else begin
            stop = np.where(has_work, begin + work, done)
            starts[number, has_work], stops[number, has_work] = begin[has_work], stop[has_work]
        busy += work
        before, done = done, stop
    return Simulation(busy, np.maximum(done, lane), starts, stops, arrivals, int(longest))


class _Lines:
    """The messages of a network's links. All times are microseconds, [ranks]."""

    def __init__(self, network: Network, key_bytes: int, copies: bool) -> None:
        self._node, self._bandwidth, self._latency = network.tables()
        self._key_bytes, self._copies = key_bytes, copies
        # When each node may send, and receive, its next message from or to another one.
        self._sends, self._receives = np.zeros((2, len(self._bandwidth)))

    def parts(self, keys: np.ndarray) -> np.ndarray:
        """The number of parts in which messages of `keys` keys are copied."""
        return np.maximum(1, np.rint(keys * self._key_bytes / PART_BYTES)) if self._copies else np.ones(len(keys))

    def carry(self, step: Step, free: np.ndarray, lane: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """When the first and the last part of each reader's message of `step` arrive, and when each rank may send next.

        `free`: when each rank is done with the compute that must precede the step's messages. `lane`: when each rank is
        done with its earlier messages.
        """
        owner, coming = step.owner, step.keys > 0
        node, source = self._node, self._node[step.owner]
        latency, bandwidth = self._latency[source, node], self._bandwidth[source, node]
        parts = self.parts(step.keys)
        part_us = latency + step.keys * self._key_bytes / parts / bandwidth
        free_at = np.maximum(lane, free) if not self._copies else np.where(coming, np.maximum(lane, free), lane)
        begin = np.maximum(free_at[owner], free_at + (latency if self._copies else 0))
        crossing = np.flatnonzero(coming & (source != node))
        whole_us = (parts * part_us)[crossing]
        for ends, clear in ((source[crossing], self._sends), (node[crossing], self._receives)):
            begin[crossing] = _queued(ends, np.maximum(begin[crossing], clear[ends]), whole_us)
        for ends, clear in ((source[crossing], self._sends), (node[crossing], self._receives)):
            np.maximum.at(clear, ends, begin[crossing] + whole_us)
        last = begin + parts * part_us
        sent = free_at.copy()
        sent[owner[coming]] = last[coming]
        if not self._copies:
            sent = np.maximum(sent, np.where(coming, last, 0.0))
        return np.where(coming, begin + part_us, 0.0), np.where(coming, last, 0.0), sent


def _queued(queue: np.ndarray, ready: np.ndarray, duration: np.ndarray) -> np.ndarray:
    """When each item's turn begins: it is `ready` for a queue, which serves one item at a time, the earliest first."""
    if not len(queue):
        return ready
    order = np.argsort(queue * (ready.max() - ready.min() + 1) + ready, kind="stable")
    queue, ready, duration = queue[order], ready[order], duration[order]
    passed = np.cumsum(duration) - duration
    # A running maximum per queue, computed for all queues at once: adding `lift` makes all values of a queue larger
    # than those of the queue before it, so the maximum starts afresh in each.
    slack = ready - passed
    lift = queue * (slack.max() - slack.min() + 1)
    begin = np.empty_like(ready)
    begin[order] = np.maximum.accumulate(slack + lift) - lift + passed
    return begin
