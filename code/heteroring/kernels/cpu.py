"""Block attention on the CPU: PyTorch's own flash kernel, which returns the LSE."""

import torch

from heteroring.kernels.causal_offset import block_from_core
from heteroring.kernels.reference import attention

_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def _core(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if _FLASH is None:
        return attention(q, k, v, scale=scale, causal_offset=0 if causal else None)
    if causal and scale <= 0:  # the kernel scales what it has masked, too
        q, scale = q * scale, 1.0
    # It rounds its output to the dtype of its inputs, once for every part that is merged; in fp32 it is as fast.
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = _FLASH(q.to(wide), k.to(wide), v.to(wide), 0.0, causal, scale=scale)
    return out, lse


block = block_from_core(_core)
