"""PyTorch's own context parallelism, a peer that is measured beside the ring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.attention import SDPBackend, sdpa_kernel

BLOCK = "cudnn"
TRANSPORT = "allgather"


def check_length(seq_len: int, ranks: int) -> None:
    """Raise ValueError unless PyTorch can share `seq_len` tokens out: each rank gets two pieces of one length."""
    if seq_len % (2 * ranks):
        raise ValueError(f"seq_len {seq_len} is not a multiple of {2 * ranks}, which context_parallel needs")


@contextmanager
def context_parallel_call(inputs: Sequence[torch.Tensor], scale: float) -> Iterator[Callable[[], torch.Tensor]]:
    """A call of causal attention to the whole q, k, v [B, H, N, D], with cuDNN and balanced load, over all ranks.

    It returns this rank's rows of out, those of the even zigzag partition, and may be made while the block runs.
    """
    # The shards are put in place of the whole tensors they are cut from, so it gets copies to do that to.
    shards = [x.clone() for x in inputs]
    grouped = inputs[0].shape[1] != inputs[1].shape[1]
    context = _context_parallel(_mesh(), buffers=shards, buffer_seq_dims=[2] * 3, no_restore_buffers=set(shards))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), context:
        # Looked up when called: PyTorch puts its own function in place of this one while the context is entered.
        yield lambda: F.scaled_dot_product_attention(*shards, is_causal=True, scale=scale, enable_gqa=grouped)


def _context_parallel(*args, **kwargs):
    from torch.distributed.tensor.experimental import context_parallel

    return context_parallel(*args, **kwargs)


_meshes: list[DeviceMesh] = []


def _mesh() -> DeviceMesh:
    if not _meshes:
        _meshes.append(init_device_mesh("cuda", (dist.get_world_size(),)))
    return _meshes[0]
