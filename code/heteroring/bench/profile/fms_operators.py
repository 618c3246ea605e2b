"""Profile kinds `layer` and `block`: FMS's attention layer and a transformer block, on one rank without a ring.

A block is the part that a model repeats: norms, projections, attention, MLP. Embedding and head, which are no part of
it, cost next to nothing per token of a long prompt: the head is applied to the last token only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from heteroring.bench.profile.job import ProfileJob
from heteroring.bench.profile.operators import Operator, backend
from heteroring.bench.random_layer import layer_flops, positions, random_layer
from heteroring.bench.shape import Shape
from heteroring.bench.wrap_module import wrap_computing
from heteroring.fms import Ring
from heteroring.fms.cache import empty_cache
from heteroring.launch.launch import Rank
from heteroring.ring.partition import Partition


def layers(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """The layer at each length; its attention is computed by the backend that the ring would use."""
    shape, device, lengths = job.shape, rank.torch_device, job.sizes_of("layer")
    layer = random_layer(shape, max(lengths), job.seed, device)
    wrap_computing(layer, rank.throttle.wrap)
    attention = backend(rank, job)
    for seq_len in lengths:
        whole = Partition.contiguous((seq_len,))
        hidden, at = shape.hidden_states(seq_len, job.seed, device), positions(whole, 0, device)
        call = partial(layer, hidden, position_ids=at, attn_name="ring", ring=Ring(whole, block=attention))
        yield Operator("layer", seq_len, layer_flops(shape, seq_len), call)


def blocks(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """The block at each length; it fills a cache as in a prefill, and its attention is that of the ring."""
    shape, device = job.shape, rank.torch_device
    model = job.one_layer.build(device, job.seed)
    block = model.base_model.layers[0]
    wrap_computing(model, rank.throttle.wrap)
    attention = backend(rank, job)
    for seq_len in job.sizes_of("block"):
        whole = Partition.contiguous((seq_len,))
        [cache] = empty_cache(model, whole, shape.batch, 0, None, None, attention).layers
        call = partial(
            block,
            shape.hidden_states(seq_len, job.seed, device),
            position_ids=positions(whole, 0, device),
            past_key_value_state=cache,
            use_cache=True,
            attn_name="ring",
            ring=Ring(whole, block=attention),
        )
        yield Operator("block", seq_len, block_flops(block, model.config, shape, seq_len), call)


def block_flops(block: nn.Module, config: object, shape: Shape, seq_len: int) -> int:
    """Floating-point operations of a block: its attention and matrices; of experts, those that a token is routed to."""
    routed = getattr(config, "top_k_experts", 1), getattr(config, "num_experts", 1)
    per_token = sum(
        weight.numel() * routed[0] // routed[1] if weight.dim() == 3 else weight.numel()
        for weight in block.parameters()
        if weight.dim() > 1
    )
    return shape.flops(seq_len) + 2 * shape.batch * seq_len * per_token
