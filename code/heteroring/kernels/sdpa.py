"""Backends by the kernels behind PyTorch's scaled_dot_product_attention that return the LSE.

`cpu` is PyTorch's own kernel for the CPU, `flash` its FlashAttention-2 kernel for CUDA, `cudnn` the one of cuDNN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from heteroring.kernels.backend_from_core import Core, Pair, backend_from_core
from heteroring.kernels.reference import in_chunks

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, bool], tuple[torch.Tensor, ...]]

_FLASH_FOR_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
HAS_CPU_KERNEL = _FLASH_FOR_CPU is not None


def _cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> Pair:
    if _FLASH_FOR_CPU is None:
        return in_chunks(q, k, v, scale, causal)
    if causal and scale <= 0:  # the kernel multiplies its mask of -inf by the scale, too
        q, scale = q * scale, 1.0
    # In fp32, because the kernel rounds its output, once per merged part, to the dtype of its inputs; it is as fast.
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = _FLASH_FOR_CPU(q.to(wide), k.to(wide), v.to(wide), 0.0, causal, scale=scale)
    return out, lse


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> tuple[torch.Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> tuple[torch.Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scale)


def _on_cuda(name: str, forward: Forward) -> Core:
    """A core for `backend_from_core` from `forward(q, k, v, scale, causal) -> (out, lse, ...)`.

    out is like q, rounded to its dtype; lse has B Hq m elements, natural log, fp32. Hq may be a multiple of Hkv.
    Calling the core raises ValueError, naming the backend `name`, for tensors that are not on CUDA or not of 16 bits.
    """

    def core(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> Pair:
        if not q.is_cuda:
            raise ValueError(f"backend {name!r} computes on CUDA, these tensors are on {q.device}")
        if q.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"backend {name!r} computes bfloat16 and float16, these tensors are {q.dtype}")
        out, lse, *_ = forward(q, k, v, scale, causal)
        return out, lse.reshape(q.shape[:3])

    return core


cpu = backend_from_core(_cpu)
flash = backend_from_core(_on_cuda("flash", _flash))
cudnn = backend_from_core(_on_cuda("cudnn", _cudnn))
