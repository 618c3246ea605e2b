"""Products of 16-bit matrices without thread block clusters, for processes in which cuBLAS gives wrong results.

`python -m heteroring.microbench.matmul` compares them with PyTorch's; docs/experiments/kernels.md has the results.
Decoding a token takes hundreds of small products, so everything that follows from shapes, strides and dtypes is worked
out once, as a `PreparedProduct`; running it fills in addresses.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from heteroring.kernels import launch_configs, tensor_map
from heteroring.kernels.launch_cache import BoundKernel, LaunchCache

ARCHITECTURE = (9, 0)


@dataclass(frozen=True, slots=True)
class PreparedProduct:
    """A launch of the kernel on operands of certain shapes, strides and dtypes."""

    kernel: BoundKernel
    by_columns: bool

    def launch(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """Run the kernel on operands like those that it was prepared for."""
        self.kernel((a, b.t() if self.by_columns else b, out))


def matmul(
    a: Tensor, b: Tensor, out: Tensor | None = None, *, config: launch_configs.MatmulConfig | None = None
) -> Tensor | None:
    """Matrix product a @ b by the Triton kernel. Forward only.

    Covered are non-empty matrices of one 16-bit dtype on one Hopper GPU (or on the CPU in Triton's interpreter). Rows
    of a, rows or columns of b, and rows of the result must be contiguous and begin at multiples of 16 bytes.

    Args:
        a: The left operand [M, K].
        b: The right operand [K, N].
        out: Where to write the result [M, N], of the operands' dtype and with a storage of its own; None for a new
            tensor.
        config: Launch configuration in place of the tuned one.

    Returns:
        The result, or None, without any work, for operands not covered.

    Raises:
        ImportError: Without Triton. A `config` that does not fit the GPU raises Triton's own error.
    """
    key = (a.device, b.device, config, tensor_map.likeness(a), tensor_map.likeness(b))
    if out is not None:
        if out.untyped_storage().data_ptr() in (a.untyped_storage().data_ptr(), b.untyped_storage().data_ptr()):
            return None
        key += (out.device, *tensor_map.likeness(out))
    prepared = _PREPARED.kept(key, lambda: _make(a, b, out, config) if _covers(a, b, out) else None)
    if prepared is None:
        return None
    out = a.new_empty(a.shape[0], b.shape[1]) if out is None else out
    prepared.launch(a, b, out)
    return out


_PREPARED = LaunchCache()


def _covers(a: Tensor, b: Tensor, out: Tensor | None) -> bool:
    if not (a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and a.numel() and b.numel()):
        return False
    if out is None:
        aligned = b.shape[1] * b.element_size() % tensor_map.ALIGNMENT == 0
    else:
        expected = ((a.shape[0], b.shape[1]), a.dtype, a.device)
        apart = out.dim() == 2 and (out.stride(0) >= out.shape[1] or out.shape[0] == 1)
        aligned = (out.shape, out.dtype, out.device) == expected and apart and _in_rows(out)
    return (
        aligned
        and a.device == b.device
        and a.dtype == b.dtype
        and a.dtype in (torch.bfloat16, torch.float16)
        and _in_rows(a)
        and (_in_rows(b.t()) or _in_rows(b))
        and _runs_on(a.device)
    )


def _make(a: Tensor, b: Tensor, out: Tensor | None, config: launch_configs.MatmulConfig | None) -> PreparedProduct:
    from triton.tools.tensor_descriptor import TensorDescriptor

    from heteroring.kernels.matmul_kernel import matmul_kernel

    (m, k), n = a.shape, b.shape[1]
    sms = torch.cuda.get_device_properties(a.device).multi_processor_count if a.is_cuda else None
    config = config or launch_configs.matmul(m, n, sms)
    out = a.new_empty(m, n) if out is None else out
    by_columns = _in_rows(b.t())
    stored, block = (b.t(), [config.block_n, config.block_k]) if by_columns else (b, [config.block_k, config.block_n])
    operands = ((a, [config.block_m, config.block_k]), (stored, block), (out, [config.block_m, config.block_n]))
    descriptors = tuple(TensorDescriptor(x, list(x.shape), tensor_map.strides(x), tile) for x, tile in operands)
    programs = min(config.tiles(m, n), sms or 3)
    rest = (m, n, k, programs)
    constants = {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP": config.group,
        "B_BY_COLUMNS": by_columns,
        "COLUMNS_FIRST": config.columns_first,
    }
    grid = (programs, 1, 1)
    if a.is_cuda:
        how = {"num_warps": config.warps, "num_stages": config.stages}
        with torch.cuda.device(a.device):
            run = matmul_kernel.warmup(*descriptors, *rest, **constants, **how, grid=grid)[grid]
    else:
        run = matmul_kernel[grid]
    return PreparedProduct(BoundKernel.of(run, descriptors, (*rest, *constants.values()), a.device.index), by_columns)


def _in_rows(x: Tensor) -> bool:
    return (x.stride(1) == 1 or x.shape[1] == 1) and tensor_map.fits(x)


def _runs_on(device: torch.device) -> bool:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return device.type == "cpu"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == ARCHITECTURE
