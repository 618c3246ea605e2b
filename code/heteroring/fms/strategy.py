"""The ring as one of FMS's distributed strategies: how a language model's prompt is partitioned over ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from fms.distributed.strategy import DistributedStrategy
from torch import nn

from heteroring.allocators import allocate
from heteroring.ring.partition import Partition, check_layout


class RingAttentionStrategy(DistributedStrategy):
    """Every rank holds all weights and a shard of the prompt; only attention communicates.

    Modules stay as they are, so that checkpoints, quantisation and everything else that FMS does to a model in one
    process work unchanged.

    Args:
        block_lens: Tokens per rank, summing to the length of every prompt; None splits each prompt evenly.
        layout: "zigzag" or "contiguous".
        group: The process group; None stands for all processes.

    Raises:
        ValueError: For an unknown layout, or `block_lens` that no partition can have.
        TypeError: For a length that is not an integer.
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
        """The partition of a prompt of `seq_len` tokens over `world_size` ranks.

        Args:
            seq_len: Tokens of the prompt.
            world_size: Number of ranks.

        Returns:
            A partition by `block_lens`, which may not fit the prompt, or an even one where there are none.

        Raises:
            ValueError: If there are no `block_lens` and an even partition is impossible.
        """
        if self.block_lens is None:
            lens = allocate("even", seq_len, percentages=(100,) * world_size, layout=self.layout)
            return Partition(self.layout, lens)
        return Partition(self.layout, self.block_lens)

    def _distribute_module(self, module: nn.Module, final_layers: bool = False) -> nn.Module:
        return module

    def _distribute_layer(self, block: nn.Module, layer: int) -> nn.Module:
        return block
