"""Two backends that show the cost of masked tiles: the portable Triton kernel, which skips them or computes them.

They differ in nothing else. A ring that computes all tiles and masks afterwards, as the public study's does, is like
`masked`.
"""

from __future__ import annotations

from functools import partial

import torch

from heteroring.kernels import triton_backend
from heteroring.kernels.backend_from_core import Pair, backend_from_core


def _core(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool, *, skip: bool) -> Pair:
    triton_backend.check(q, k, v, scale)
    if scale <= 0:  # the kernel takes the maximum of the unscaled scores
        q, scale = q * (-1 if scale < 0 else 0), abs(scale) or 1.0
    if not q.is_cuda:  # Triton's interpreter multiplies the bit patterns of bf16 as integers
        q, k, v = q.float(), k.float(), v.float()
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    offset = 0 if causal else None
    triton_backend.launch(q, k, v, out, lse, scale, offset, merge=False, skip=skip)
    return out, lse


portable = backend_from_core(partial(_core, skip=True))
masked = backend_from_core(partial(_core, skip=False))
