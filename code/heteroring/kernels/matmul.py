"""Products of 16-bit matrices without thread block clusters, for processes in which those of cuBLAS cannot be trusted.

`python -m heteroring.kernels.bench_matmul` holds them against PyTorch's; EXPERIMENTS.md says where those are wrong.
"""

from __future__ import annotations

from functools import cache

import torch

from heteroring.kernels import tensor_map, tuned

ARCHITECTURE = (9, 0)


def covers(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> bool:
    """Whether `matmul` takes these operands.

    That is a [M, K] and b [K, N], none of them empty, of the same 16-bit dtype, on one Hopper GPU; rows of a, and rows
    or columns of b, in one piece and 16 bytes or a multiple of it apart; so are the rows of `out` [M, N], which has the
    same dtype and shares no memory with them, or those of what will be allocated for it.
    """
    return (
        a.is_cuda
        and a.device == b.device
        and a.dtype == b.dtype
        and a.dtype in (torch.bfloat16, torch.float16)
        and _capability(a.device) == ARCHITECTURE
        and fits(a, b, out)
    )


def fits(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> bool:
    """Whether the shapes, strides and addresses are such as `covers` says."""
    if not (a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and a.numel() and b.numel()):
        return False
    if out is None:
        aligned = b.shape[1] * b.element_size() % tensor_map.ALIGNMENT == 0
    else:
        aligned = (
            (out.shape, out.dtype, out.device) == ((a.shape[0], b.shape[1]), a.dtype, a.device)
            and _in_rows(out)
            and (out.stride(0) >= out.shape[1] or out.shape[0] == 1)
            and out.untyped_storage().data_ptr() not in (x.untyped_storage().data_ptr() for x in (a, b))
        )
    return aligned and _in_rows(a) and (_in_rows(b.t()) or _in_rows(b))


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a [M, K] @ b [K, N], into `out` [M, N] if there is one: operands that `covers` says yes to. Forward only."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from heteroring.kernels.matmul_kernel import matmul_kernel

    (m, k), n = a.shape, b.shape[1]
    multiprocessors = _multiprocessors(a.device) if a.is_cuda else None
    config = tuned.matmul(m, n, multiprocessors)
    out = a.new_empty(m, n) if out is None else out
    by_columns = _in_rows(b.t())
    stored, block = (b.t(), [config.block_n, config.block_k]) if by_columns else (b, [config.block_k, config.block_n])
    programs = min(config.tiles(m, n), multiprocessors or 3)
    with torch.cuda.device(a.device if a.is_cuda else -1):
        matmul_kernel[(programs,)](
            TensorDescriptor(a, list(a.shape), tensor_map.strides(a), [config.block_m, config.block_k]),
            TensorDescriptor(stored, list(stored.shape), tensor_map.strides(stored), block),
            TensorDescriptor(out, list(out.shape), tensor_map.strides(out), [config.block_m, config.block_n]),
            m,
            n,
            k,
            programs,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            GROUP=config.group,
            B_BY_COLUMNS=by_columns,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out


def _in_rows(x: torch.Tensor) -> bool:
    return (x.stride(1) == 1 or x.shape[1] == 1) and tensor_map.fits(x)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _multiprocessors(device: torch.device) -> int:
    """Multiprocessors of `device` as CUDA counts them in this process."""
    return torch.cuda.get_device_properties(device).multi_processor_count
