"""Block attention by cuDNN, through the operator behind PyTorch's scaled_dot_product_attention."""

from __future__ import annotations

import torch

from heteroring.kernels.causal_offset import block_from_core
from heteroring.kernels.sdpa import core_from_forward


def _forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> tuple[torch.Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scale)


block = block_from_core(core_from_forward("cudnn", _forward))
