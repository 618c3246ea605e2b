"""A recorded platform as the simulation knows it: costs by its profiles, a link and tiles as measured apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from heteroring.allocators.cost_model import CostModel
from heteroring.allocators.costs import Cost
from heteroring.planning.network import Link, Network
from heteroring.planning.simulate import Simulation, simulate
from heteroring.planning.work import Work
from heteroring.ring.partition import Partition

# Two H200: copies of 27 MB took 70 us, each part some 6 us besides its bytes (docs/experiments/ring.md).
NVLINK = Link(386.0, 6.0)
# Ranks that share a memory.
SHARED_MEMORY = Link(1e9, 0.0)


@dataclass(frozen=True)
class Recorded:
    """What was measured of one rank at every percentage, and what links ranks. Nothing of it comes from a ring's time.

    Balanced splits are in multiples of `multiple`; the kernel works in tiles of `tile`.
    """

    model: CostModel
    link: Link
    multiple: int
    tile: int

    @classmethod
    def of(cls, model: Mapping[str, Any], gpu: bool) -> Self:
        """The platform of a cost model's JSON, on GPUs or on CPUs."""
        link, multiple, tile = (NVLINK, 256, 128) if gpu else (SHARED_MEMORY, 1, 1)
        return cls(CostModel.from_json(dict(model)), link, multiple, tile)

    def costs(self, seq_len: int, percentages: Sequence[float]) -> list[Cost]:
        """The cost of each rank in an attention call over `seq_len` tokens."""
        known = {each: self.model.predict(seq_len, each).cost for each in set(percentages)}
        return [known[each] for each in percentages]

    def simulate(self, partition: Partition, percentages: Sequence[float]) -> Simulation:
        """One attention call over a ring of copy engines in one node, rank r at percentages[r]."""
        setup = self.model.setup
        shape = {name: int(setup[name]) for name in ("heads", "kv_heads", "head_dim")}
        key_bytes = int(setup["batch"]) * Work.attention(**shape, dtype=setup["dtype"]).key_bytes
        network = Network.single_node(partition.world_size, self.link)
        costs = self.costs(partition.seq_len, percentages)
        return simulate(partition, costs, network, key_bytes, tile=self.tile, fused=self.tile > 1)
