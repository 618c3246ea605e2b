"""How a model's prompt is laid out over ranks, as one of FMS's distributed strategies."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from fms.distributed.strategy import DistributedStrategy
from torch import nn

from heteroring.allocators import allocate
from heteroring.ring.partition import Partition, check_layout


class RingAttentionStrategy(DistributedStrategy):
    """Every rank holds all weights and a shard of the prompt; only attention crosses ranks.

    `block_lens` are the tokens a rank, summing to the prompt of every prefill; None splits each prompt evenly.
    `group` is the ring's (default: all processes). Modules stay as they are, so that checkpoints, quantisation and
    whatever else FMS does to a model on one process work unchanged.

    Raises ValueError for an unknown layout or block lengths that no partition could have.
    """

    def __init__(
        self,
        block_lens: Iterable[int] | None = None,
        layout: str = "zigzag",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_layout(layout)
        self.block_lens = None if block_lens is None else Partition(layout, tuple(block_lens)).block_lens
        self.layout = layout
        self.group = group

    def partition(self, seq_len: int, world_size: int) -> Partition:
        """How `world_size` ranks share a prompt of `seq_len` tokens; by `block_lens` if given, which may not fit it."""
        if self.block_lens is None:
            lens = allocate("even", seq_len, percentages=(100,) * world_size, layout=self.layout)
            return Partition(self.layout, lens)
        return Partition(self.layout, self.block_lens)

    def _distribute_module(self, module: nn.Module, final_layers: bool = False) -> nn.Module:
        return module

    def _distribute_layer(self, block: nn.Module, layer: int) -> nn.Module:
        return block
