"""The links between ranks: bandwidth and latency within a node and between nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Link:
    """`gb_per_s` (10^9 bytes) one way, and the microseconds that a message takes besides its bytes."""

    gb_per_s: float
    latency_us: float


@dataclass(frozen=True)
class Network:
    """The node of each rank, and the link of each pair of nodes.

    Within a node every pair of ranks has the full bandwidth; `links[a, a]` is that of node a. Between nodes a and b it
    is `links[a, b]`, a <= b, and each node sends one message at a time, and receives one, for all of its ranks.
    """

    nodes: tuple[str, ...]
    links: Mapping[tuple[str, str], Link]

    @classmethod
    def single_node(cls, ranks: int, link: Link) -> Network:
        """All ranks in one node."""
        return cls(("node",) * ranks, {("node", "node"): link})

    def missing(self) -> tuple[str, str] | None:
        """Two nodes with ranks that must reach one another but are not linked, if there are any."""
        names = sorted(set(self.nodes))
        for i, first in enumerate(names):
            for second in names[i:]:
                if (first, second) not in self.links and (first != second or self.nodes.count(first) > 1):
                    return first, second
        return None

    def ordered(self, order: tuple[int, ...]) -> Network:
        """The same network, rank order[i] at place i."""
        return Network(tuple(self.nodes[rank] for rank in order), self.links)

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each rank's node [ranks]; bytes per microsecond, and latencies, between nodes [nodes, nodes]."""
        index = {name: number for number, name in enumerate(sorted(set(self.nodes)))}
        bandwidth, latency = np.full((2, len(index), len(index)), np.nan)
        for (first, second), link in self.links.items():
            if first in index and second in index:
                a, b = index[first], index[second]
                bandwidth[a, b] = bandwidth[b, a] = 1e3 * link.gb_per_s
                latency[a, b] = latency[b, a] = link.latency_us
        return np.array([index[node] for node in self.nodes]), bandwidth, latency
