"""Profile kind `block`: a transformer block over a whole prompt, on one rank without a ring.

A block is what a model repeats: norms, projections, attention, MLP. Embedding and head, which are no part of it, cost a
token of a long prompt next to nothing: the head is applied to the last one only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from heteroring.bench.model.spec import ModelSpec
from heteroring.bench.profile.operators import Operator, sizes
from heteroring.bench.requirements import check_fms
from heteroring.bench.shape import Shape
from heteroring.bench.wrap_module import wrap_computing
from heteroring.kernels.backend import resolve
from heteroring.launch.launch import Rank
from heteroring.ring.partition import Partition

if TYPE_CHECKING:
    from heteroring.bench.profile.run import ProfileJob

KIND = "block"
VOCABULARY = 32  # of the embedding and head around the block, which are not timed


def check(job: ProfileJob) -> None:
    """Raise ValueError without the package ibm-fms, or without a model that has blocks of the job's shape."""
    check_fms(f"profile kind {KIND!r}")
    if not job.model:
        raise ValueError(f"profile kind {KIND!r} needs a model: name its architecture and variant, such as llama/3-8b")
    _spec(job)


def operators(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """The block at each length; it fills a cache as in a prefill, and its attention is that of the ring's block."""
    from heteroring.bench.random_layer import positions
    from heteroring.fms import Ring
    from heteroring.fms.cache import empty_cache

    shape, device = job.shape, rank.torch_device
    model = _spec(job).build(device, job.seed)
    block = model.base_model.layers[0]
    wrap_computing(model, rank.throttle.wrap)
    attention = rank.throttle.wrap(resolve(job.block, device, shape.torch_dtype, shape.head_dim))
    for seq_len in sizes(KIND, job):
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
        yield Operator(KIND, seq_len, block_flops(block, model.config, shape, seq_len), call)


def block_flops(block: nn.Module, config: object, shape: Shape, seq_len: int) -> int:
    """Floating-point operations of a block: its attention and matrices, of experts those that a token is sent to."""
    routed = getattr(config, "top_k_experts", 1), getattr(config, "num_experts", 1)
    per_token = sum(
        weight.numel() * routed[0] // routed[1] if weight.dim() == 3 else weight.numel()
        for weight in block.parameters()
        if weight.dim() > 1
    )
    return shape.flops(seq_len) + 2 * shape.batch * seq_len * per_token


def _spec(job: ProfileJob) -> ModelSpec:
    """The model that the job names, with one layer, in the job's shape."""
    shape = job.shape
    spec = ModelSpec(
        job.model,
        shape.dtype,
        layers=1,
        emb_dim=shape.heads * shape.head_dim,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        vocabulary=VOCABULARY,
        max_seq_len=max(job.seq_lens),
    )
    if spec.sizes.head_dim != shape.head_dim:
        raise ValueError(f"head_dim is {shape.head_dim}: {job.model} has heads of {spec.sizes.head_dim}")
    return spec
