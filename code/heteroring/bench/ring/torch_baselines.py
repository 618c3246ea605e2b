"""The baselines measured beside the ring: PyTorch's own attention on one GPU, and its context parallelism."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def context_parallel_call(inputs: Sequence[torch.Tensor], scale: float) -> Iterator[Callable[[], torch.Tensor]]:
    """A call of causal attention to the whole q, k, v [B, H, N, D], with cuDNN and balanced load, over all ranks.

    It returns this rank's rows of out, those of the even zigzag partition, and may be made within the context. N is a
    multiple of twice the number of ranks.
    """
    # context_parallel replaces the tensors by their shards, so it gets copies.
    shards = [x.clone() for x in inputs]
    call = single_gpu_call(shards, scale)
    with context_parallel(_mesh(), buffers=shards, buffer_seq_dims=[2] * 3, no_restore_buffers=set(shards)):
        yield call


def single_gpu_call(inputs: Sequence[torch.Tensor], scale: float) -> Callable[[], torch.Tensor]:
    """A call of causal attention to q, k, v [B, H, N, D] with cuDNN, that returns out."""
    grouped = inputs[0].shape[1] != inputs[1].shape[1]

    def call() -> torch.Tensor:
        # Looked up at each call: inside its context, context_parallel replaces this function.
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(*inputs, is_causal=True, scale=scale, enable_gqa=grouped)

    return call


@cache
def _mesh() -> DeviceMesh:
    return init_device_mesh("cuda", (dist.get_world_size(),))
