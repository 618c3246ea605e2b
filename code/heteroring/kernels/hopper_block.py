"""Host side of the Hopper kernel: which operands it covers, and its launch."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from heteroring.kernels import tuned

ARCHITECTURE = (9, 0)
BLOCK_M = 128  # hopper_kernel.BLOCK_M
TMA_ALIGNMENT = 16  # bytes: of every address and stride in a tensor map


def covers(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the Hopper kernel takes these operands, which `triton_block.check` has passed.

    It wants a Hopper GPU, 16-bit operands, addresses and strides that are multiples of 16 bytes, and no broadcast
    dimension. Anything else runs the portable kernel.
    """
    return (
        q.is_cuda
        and q.element_size() == 2
        and torch.cuda.get_device_capability(q.device) == ARCHITECTURE
        and all(_fits_a_tensor_map(x) for x in (q, k, v))
        and _kernel() is not None
    )


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal_offset: int | None,
    fold: bool,
    config: tuned.HopperConfig | None = None,
) -> None:
    """Run the Hopper kernel, with at least one visible key and scale > 0, on operands that it covers."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batch, heads, m, head_dim = q.shape
    n = k.shape[2]
    offset = n
    if causal_offset is not None:
        # Tiles of queries that see no key are not launched, and keys that no query sees are cut off: what lies there
        # is never read, so that a NaN in it cannot reach a result.
        blind = max(0, -causal_offset) // BLOCK_M * BLOCK_M
        if blind and not fold:
            out[:, :, :blind].zero_()
            lse[:, :, :blind].fill_(-math.inf)
        q, out, lse = q[:, :, blind:], out[:, :, blind:], lse[:, :, blind:]
        n = min(n, m + causal_offset)
        k, v = k[:, :, :n], v[:, :, :n]
        m, offset = m - blind, causal_offset + blind
    config = config or tuned.HOPPER[tuned.padded(head_dim)]
    block_d = tuned.padded(head_dim)
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)

    def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
        return TensorDescriptor(x, list(x.shape), _strides(x), [1, 1, rows, block_d], layout)

    group = heads // k.shape[1]
    with torch.cuda.device(q.device):
        _kernel()[(-(-m // BLOCK_M) * batch * heads,)](
            descriptor(q, BLOCK_M // 2),
            descriptor(k, config.block_n),
            descriptor(v, config.block_n),
            out,
            lse,
            *(*out.stride()[:3], *lse.stride()),
            *(batch, heads, m, n, offset),
            scale * math.log2(math.e),
            tuned.section(batch * heads, group, n, head_dim, q.element_size()),
            GROUP=group,
            HEAD_DIM=head_dim,
            BLOCK_N=config.block_n,
            BLOCK_D=block_d,
            STAGES=config.stages,
            CAUSAL=causal_offset is not None,
            FOLD=fold,
            Q_IN_REGISTERS=config.q_in_registers,
            num_warps=4,
        )


def _fits_a_tensor_map(x: Tensor) -> bool:
    step = TMA_ALIGNMENT // x.element_size()
    strides = [stride for stride, size in zip(x.stride()[:3], x.shape[:3], strict=True) if size > 1]
    return x.data_ptr() % TMA_ALIGNMENT == 0 and all(s > 0 and s % step == 0 for s in strides)


def _strides(x: Tensor) -> list[int]:
    """The strides of x, with that of a dimension of one element, which means nothing, made acceptable to TMA."""
    return [stride if size > 1 else x.shape[3] for stride, size in zip(x.stride()[:3], x.shape[:3], strict=True)] + [1]


@lru_cache(maxsize=1)
def _kernel():
    """The kernel, or None where this Triton has no Gluon for Hopper."""
    try:
        from heteroring.kernels.hopper_kernel import forward_kernel
    except ImportError:
        return None
    return forward_kernel
