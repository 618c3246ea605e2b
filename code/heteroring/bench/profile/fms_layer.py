"""Profile kind `layer`: FMS's attention layer over a whole prompt, on one rank without a ring."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from heteroring.bench.profile.operators import Operator, sizes
from heteroring.bench.requirements import check_layer
from heteroring.bench.wrap_module import wrap_computing
from heteroring.kernels.backend import resolve
from heteroring.launch.launch import Rank
from heteroring.ring.partition import Partition

if TYPE_CHECKING:
    from heteroring.bench.profile.run import ProfileJob

KIND = "layer"


def check(job: ProfileJob) -> None:
    """Raise ValueError without the package ibm-fms, or if the width of a head is odd."""
    check_layer(f"profile kind {KIND!r}", job.shape.head_dim)


def operators(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """The layer at each length; its attention is computed by the block that the ring would use."""
    from heteroring.bench.random_layer import layer_flops, positions, random_layer
    from heteroring.fms import Ring

    shape, device, lengths = job.shape, rank.torch_device, sizes(KIND, job)
    layer = random_layer(shape, max(lengths), job.seed, device)
    wrap_computing(layer, rank.throttle.wrap)
    block = rank.throttle.wrap(resolve(job.block, device, shape.torch_dtype, shape.head_dim))
    for seq_len in lengths:
        whole = Partition.contiguous((seq_len,))
        hidden = shape.hidden_states(seq_len, job.seed, device)
        ring = Ring(whole, block=block)
        at = positions(whole, 0, device)
        call = partial(layer, hidden, position_ids=at, attn_name="ring", ring=ring)
        yield Operator(KIND, seq_len, layer_flops(shape, seq_len), call)
