"""What the attention kernels that come with PyTorch for CUDA have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch

from heteroring.kernels.causal_offset import Core, Pair

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, bool], tuple[torch.Tensor, ...]]


def core_from_forward(name: str, forward: Forward) -> Core:
    """A core for `block_from_core` from `forward(q, k, v, scale, causal) -> (out, lse, ...)`.

    out is like q, rounded to its dtype; lse has B Hq m elements, natural log, fp32. Hq may be a multiple of Hkv.
    Calling the core raises ValueError, naming the backend `name`, for tensors that are not on CUDA or not of 16 bits.
    """

    def core(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> Pair:
        if not q.is_cuda:
            raise ValueError(f"block {name!r} computes on CUDA, these tensors are on {q.device}")
        if q.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"block {name!r} computes bfloat16 and float16, these tensors are {q.dtype}")
        out, lse, *_ = forward(q, k, v, scale, causal)
        return out, lse.reshape(q.shape[:3])

    return core
