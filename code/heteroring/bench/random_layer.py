"""FMS's attention layer, which the published study timed, with random weights."""

from __future__ import annotations

import torch
from fms.modules.attention import MultiHeadAttention
from fms.modules.positions import RotaryEmbedding

from heteroring.bench.shape import Shape, same_on_every_rank
from heteroring.ring.partition import Partition


def random_layer(shape: Shape, max_seq_len: int, seed: int, device: torch.device) -> MultiHeadAttention:
    """A layer of width heads * head_dim with rotary positions, the same on every rank.

    Its weights are scaled so that normal hidden states give queries and keys of variance 1.

    Args:
        shape: Heads and element type.
        max_seq_len: Tokens that there are positions for.
        seed: Seed of the weights.
        device: Where it lies.

    Returns:
        The layer.
    """
    with torch.device(device):
        layer = MultiHeadAttention(
            shape.emb_dim,
            shape.head_dim,
            shape.head_dim,
            shape.heads,
            shape.kv_heads,
            position_encoder=RotaryEmbedding(shape.head_dim, max_seq_len=max_seq_len),
        )
    layer = layer.to(shape.torch_dtype).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for weight in layer.parameters():
        weight.normal_(std=shape.emb_dim**-0.5, generator=generator)
    same_on_every_rank(tuple(layer.parameters()))
    return layer


def layer_flops(shape: Shape, seq_len: int) -> int:
    """Floating-point operations of the layer: its attention and its four projections, not the rotation."""
    columns = 2 * shape.heads + 2 * shape.kv_heads  # of queries and output, of keys and values
    return shape.flops(seq_len) + 2 * shape.batch * seq_len * shape.emb_dim * columns * shape.head_dim


def positions(partition: Partition, rank: int, device: torch.device) -> torch.Tensor:
    """[1, n_r]: positions of the tokens of `rank` in the prompt."""
    return torch.from_numpy(partition.positions(rank)).to(device)[None]
