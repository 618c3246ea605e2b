"""Products of 16-bit matrices without thread block clusters, for processes in which those of cuBLAS cannot be trusted.

`python -m heteroring.kernels.bench_matmul` holds them against PyTorch's; EXPERIMENTS.md says where those are wrong.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from heteroring.kernels import tuned

CLUSTERS = (9, 0)  # compute capability from which on there are thread block clusters
TMA_ALIGNMENT = 16  # bytes: of every address and row in a tensor map


def covers(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> bool:
    """Whether `matmul` takes these operands.

    That is a [M, K] and b [K, N], none of them empty, of the same 16-bit dtype, on one GPU with thread block clusters;
    rows of a, and rows or columns of b, in one piece and 16 bytes or a multiple of it apart, as are those of `out`
    [M, N], in the same dtype, or of what will be allocated for it.
    """
    return (
        a.is_cuda
        and a.device == b.device
        and a.dtype == b.dtype
        and a.dtype in (torch.bfloat16, torch.float16)
        and a.dim() == b.dim() == 2
        and a.shape[1] == b.shape[0]
        and a.numel() > 0
        and b.numel() > 0
        and _has_clusters(a.device)
        and _fits(a)
        and (_fits(b.t()) or _fits(b))
        and (b.shape[1] * b.element_size() % TMA_ALIGNMENT == 0 if out is None else _takes(out, a, b))
    )


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a [M, K] @ b [K, N], into `out` [M, N] if there is one: operands that `covers` says yes to. Forward only."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from heteroring.kernels.matmul_kernel import matmul_kernel

    (m, k), n = a.shape, b.shape[1]
    multiprocessors = _multiprocessors(a.device) if a.is_cuda else None
    config = tuned.matmul(m, n, multiprocessors)
    out = a.new_empty(m, n) if out is None else out
    by_columns = _fits(b.t())
    stored, block = (b.t(), [config.block_n, config.block_k]) if by_columns else (b, [config.block_k, config.block_n])
    tiles = -(-m // config.block_m) * -(-n // config.block_n)
    programs = min(tiles, multiprocessors or 3)
    matmul_kernel[(programs,)](
        TensorDescriptor(a, list(a.shape), _strides(a), [config.block_m, config.block_k]),
        TensorDescriptor(stored, list(stored.shape), _strides(stored), block),
        TensorDescriptor(out, list(out.shape), _strides(out), [config.block_m, config.block_n]),
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


def _takes(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> bool:
    return out.shape == (a.shape[0], b.shape[1]) and out.dtype == a.dtype and out.device == a.device and _fits(out)


def _fits(x: torch.Tensor) -> bool:
    """Whether the rows of x [r, c] can be loaded by TMA."""
    step = TMA_ALIGNMENT // x.element_size()
    pitch = _strides(x)[0]
    return (x.stride(1) == 1 or x.shape[1] == 1) and pitch >= x.shape[1] and pitch % step == 0 and _aligned(x)


def _aligned(x: torch.Tensor) -> bool:
    return x.data_ptr() % TMA_ALIGNMENT == 0


def _strides(x: torch.Tensor) -> list[int]:
    """Strides of x [r, c], that of a dimension of one element, which means nothing, as TMA wants it."""
    step = TMA_ALIGNMENT // x.element_size()
    return [x.stride(0) if x.shape[0] > 1 else -(-x.shape[1] // step) * step, 1]


@cache
def _has_clusters(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= CLUSTERS and find_spec("triton") is not None


@cache
def _multiprocessors(device: torch.device) -> int:
    """Multiprocessors of `device` as CUDA counts them in this process."""
    return torch.cuda.get_device_properties(device).multi_processor_count
