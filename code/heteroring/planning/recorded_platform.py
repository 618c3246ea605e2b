"""A recorded platform as input of the simulation: the cost model of its profiles, and constants of link and tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from heteroring.allocators.cost_model import CostModel
from heteroring.allocators.unit_costs import Cost
from heteroring.allocators.waves import MOST_RANKS, step_us
from heteroring.planning.network import Link, Network
from heteroring.planning.simulate import Simulation, simulate
from heteroring.planning.work import Work
from heteroring.ring.partition import Partition

# Two H200: copies of 27 MB took 70 us, each part some 6 us besides its bytes (docs/experiments/ring.md).
NVLINK = Link(386.0, 6.0)
# Ranks that share a memory.
SHARED_MEMORY = Link(1e9, 0.0)


@dataclass(frozen=True)
class RecordedPlatform:
    """Measurements of one rank at every percentage, and the link between ranks. Nothing is derived from a ring's time.

    Balanced splits are in multiples of `multiple`; the kernel works in tiles of `tile`.
    """

    cost_model: CostModel
    link: Link
    multiple: int
    tile: int

    @classmethod
    def of(cls, cost_model: Mapping[str, Any], gpu: bool) -> Self:
        """The platform of a cost model's JSON.

        Args:
            cost_model: Content of the file of a cost model.
            gpu: Whether it was measured on GPUs, not on CPUs.

        Returns:
            The platform.
        """
        link, multiple, tile = (NVLINK, 256, 128) if gpu else (SHARED_MEMORY, 1, 1)
        return cls(CostModel.from_json(dict(cost_model)), link, multiple, tile)

    def costs(self, seq_len: int, percentages: Sequence[float]) -> list[Cost]:
        """The cost of each rank in an attention call over `seq_len` tokens."""
        known = {each: self.cost_model.predict(seq_len, each).cost for each in set(percentages)}
        return [known[each] for each in percentages]

    def simulate(self, partition: Partition, percentages: Sequence[float], fused: bool = True) -> Simulation:
        """One attention call over a ring of copy engines in one node.

        For few ranks whose SMs the cost model knows, whole waves of tiles are counted.

        Args:
            partition: Which tokens each rank holds.
            percentages: Percentage of each rank, in rank order.
            fused: On GPUs, whether the first two steps are one pass.

        Returns:
            The simulation, in microseconds.
        """
        setup = self.cost_model.setup
        shape = {name: int(setup[name]) for name in ("heads", "kv_heads", "head_dim")}
        key_bytes = int(setup["batch"]) * Work.attention(**shape, dtype=setup["dtype"]).key_bytes
        network = Network.single_node(partition.world_size, self.link)
        costs = self.costs(partition.seq_len, percentages)
        fused = fused and self.tile > 1
        work_us = self._work_us(partition, percentages, costs, fused)
        return simulate(partition, costs, network, key_bytes, tile=self.tile, fused=fused, work_us=work_us)

    def _work_us(
        self, partition: Partition, percentages: Sequence[float], costs: Sequence[Cost], fused: bool
    ) -> np.ndarray | None:
        """Microseconds of each step in whole waves, [steps, ranks], or None where waves are not counted."""
        ranks = range(partition.world_size)
        if len(ranks) > MOST_RANKS:
            return None
        answer = np.zeros((len(ranks), len(ranks)))
        for rank in ranks:
            grid = self.cost_model.grid(partition.seq_len, percentages[rank])
            if grid is None:
                return None
            for step, us in step_us(partition, rank, costs[rank], grid, fused).items():
                answer[step, rank] = us
        return answer
