"""The shape of the measured attention and of the layer around it, and random inputs of it, equal on every rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

from heteroring.results.rows import DTYPES
from heteroring.ring.workload import causal_flops, total_pairs
from heteroring.words import choices


@dataclass(frozen=True)
class Shape:
    """Batch, heads and element type of the causal attention that a job measures.

    Raises ValueError if a count is below 1, heads is not a multiple of kv_heads, or dtype is not one of
    DTYPES.
    """

    batch: int = 1
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is unknown: choose {choices(self.dtype, DTYPES)}")

    @property
    def scale(self) -> float:
        """The factor on scores, 1/sqrt(head_dim)."""
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type."""
        return getattr(torch, self.dtype)

    def flops(self, seq_len: int) -> int:
        """Floating-point operations of the whole causal attention."""
        return causal_flops(self.batch, self.heads, self.head_dim, total_pairs(seq_len))

    def inputs(self, seq_len: int, seed: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Random inputs of attention, normal, and for a seed the same on devices alike.

        Args:
            seq_len: Tokens, N.
            seed: Seed of the random numbers.
            device: Where they are made.

        Returns:
            q [B, Hq, N, D], k and v [B, Hkv, N, D].
        """
        generator = torch.Generator(device).manual_seed(seed + seq_len)
        return tuple(
            torch.randn(
                self.batch,
                heads,
                seq_len,
                self.head_dim,
                generator=generator,
                device=device,
                dtype=self.torch_dtype,
            )
            for heads in (self.heads, self.kv_heads, self.kv_heads)
        )

    @property
    def emb_dim(self) -> int:
        """Width of the hidden states of a layer with these heads."""
        return self.heads * self.head_dim

    def hidden_states(self, seq_len: int, seed: int, device: torch.device) -> torch.Tensor:
        """Random hidden states, normal, and for a seed the same on devices alike.

        Args:
            seq_len: Tokens, N.
            seed: Seed of the random numbers.
            device: Where they are made.

        Returns:
            [B, N, heads * head_dim].
        """
        generator = torch.Generator(device).manual_seed(seed + seq_len)
        size = (self.batch, seq_len, self.emb_dim)
        return torch.randn(size, generator=generator, device=device, dtype=self.torch_dtype)


def same_on_every_rank(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The tensors, on GPUs those of rank 0: from one seed, GPUs with different SM counts draw different numbers."""
    if tensors[0].is_cuda:
        for x in tensors:
            dist.broadcast(x, src=0)
    return tensors
