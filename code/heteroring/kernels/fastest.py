"""Which backend `auto` is on a CUDA device: the fastest that was measured there, at the lengths of long prompts."""

from __future__ import annotations

import torch

from heteroring.kernels import triton_block

_HALF = (torch.bfloat16, torch.float16)

# (compute capability, head_dim) -> backend, by docs/experiments/kernels.md in bf16; fp16 is taken to be like it.
# With heads of 64 the Hopper kernel and cuDNN are equally fast, and cuDNN rounds each partial result to 16 bits before
# it is merged. Dense squares of 2,048 tokens are faster by cuDNN, by 14 %.
MEASURED: dict[tuple[tuple[int, int], int], str] = {
    ((9, 0), 64): "triton",
    ((9, 0), 96): "triton",
    ((9, 0), 128): "triton",
    ((9, 0), 256): "triton",
}


def backend(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> str:
    """The backend for tensors of `dtype` and `head_dim`; where nobody measured, one that runs everywhere."""
    if dtype in _HALF and (capability, head_dim) in MEASURED:
        return MEASURED[capability, head_dim]
    if dtype in triton_block.DTYPES and head_dim in triton_block.HEAD_DIMS:
        return "triton"
    return "flash" if dtype in _HALF and head_dim <= 256 else "reference"
