"""Host side of split-KV decode: how the keys are cut into chunks, and the launches.

With one query per head, heads alone are too little parallel work for a GPU. So the keys of each KV head are cut into
chunks, enough to give every SM work, and the partial results are merged by their LSE. The queries that share a KV head
are rows of one tile, so that keys and values, whose reading takes most of the time of decode, are read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from heteroring.kernels.launch_cache import BoundKernel, LaunchCache

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_HEAD_DIM = 256
# 64-bit words that a head's part takes in an exchange: the longest output, its LSE, and room to keep 16 bytes aligned.
WORDS = MOST_HEAD_DIM + 2
# Most elements of the queries that share a KV head: with more, they and the tiles of keys and values would not fit the
# shared memory of every GPU since compute capability 8.0.
MOST_QUERIES = 8192

# Chunks in flight on each SM: enough to keep reading memory while others compute.
_PROGRAMS = 2
_BLOCK_S = 16
# Programs of the exchange between ranks: few enough to run all at once, whatever share of a GPU the rank has.
_EXCHANGERS = 64


def covers(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes these operands: on CUDA, with one query, and heads of up to 256 contiguous elements."""
    return (
        q.is_cuda
        and q.dtype in DTYPES
        and k.stride(3) == v.stride(3) == 1
        and fits(q.shape[1] // k.shape[1], q.shape[3])
    )


def fits(group: int, head_dim: int) -> bool:
    """Whether `group` query heads that share a KV head fit in one tile on every GPU since compute capability 8.0."""
    return head_dim <= MOST_HEAD_DIM and _power_of_two(group) * _power_of_two(head_dim) <= MOST_QUERIES


def partials(
    q: Tensor, k: Tensor, v: Tensor, scale: float, most: int | None = None, cached: Tensor | None = None
) -> Tensor:
    """Attend to keys in chunks, as many as fill the device.

    Args:
        q: The query [B, Hq, 1, D].
        k: Keys [B, Hkv, m, D].
        v: Values [B, Hkv, m, D].
        scale: Factor on the scores.
        most: Most chunks of each KV head; None for as many as fill the device.
        cached: Number of keys, from the first on, an integer tensor of one element on the device; None for all m.

    Returns:
        Packed parts [S, B, Hq, D + 1] (see decode_partials), one per chunk.
    """
    from heteroring.kernels.decode_kernel import chunk_kernel

    batch, heads, _, head_dim = q.shape
    kv_heads, n = k.shape[1], k.shape[2]
    if q.stride(3) != 1:
        q = q.contiguous()
    if q.dtype == torch.bfloat16 and not q.is_cuda:
        # Triton's interpreter multiplies the bit patterns of bf16 as integers.
        q, k, v = q.float(), k.float(), v.float()
    rows = _rows(head_dim, q.element_size())
    if most is None:
        most = max(1, _PROGRAMS * _sm_count(q.device) // (batch * kv_heads))
    chunks = cut(n, rows, most)
    parts = q.new_empty((chunks, batch, heads, head_dim + 1), dtype=torch.float32)
    group = heads // kv_heads
    _launch(
        chunk_kernel,
        (chunks, batch * kv_heads, 1),
        (q, k, v, parts, n if cached is None else cached),
        (
            *(*q.stride()[:2], *k.stride()[:3], *v.stride()[:3], *parts.stride()[:3]),
            *(kv_heads, scale * math.log2(math.e)),
        ),
        {
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "BLOCK_G": max(16, _power_of_two(group)),
            "BLOCK_N": rows,
            "BLOCK_D": max(16, _power_of_two(head_dim)),
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
            "COUNTED": cached is not None,
        },
        stages=3 if q.element_size() == 2 else 2,
    )
    return parts


def combine(parts: Tensor, dtype: torch.dtype, with_lse: bool) -> Tensor:
    """Merge parts over disjoint keys.

    Args:
        parts: fp32 parts [S, B, Hq, D + 1].
        dtype: dtype of the result.
        with_lse: Whether to return a part, with its LSE.

    Returns:
        One part [B, Hq, D + 1], or without LSE the output [B, Hq, D].
    """
    from heteroring.kernels.decode_kernel import combine_kernel

    count, batch, heads, width = parts.shape
    head_dim = width - 1
    out = parts.new_empty((batch, heads, width if with_lse else head_dim), dtype=dtype)
    _launch(
        combine_kernel,
        (batch * heads, 1, 1),
        (parts, out),
        (*parts.stride()[:3], *out.stride()[:2], count, heads),
        {"HEAD_DIM": head_dim, "BLOCK_S": _BLOCK_S, "BLOCK_D": _power_of_two(head_dim), "WITH_LSE": with_lse},
    )
    return out


def exchange(parts: Tensor, dtype: torch.dtype, places: Tensor, calls: Tensor, rank: int) -> Tensor:
    """Merge the parts of all ranks, which write them into one another's memory. Every rank calls.

    Args:
        parts: This rank's fp32 parts [S, B, Hq, D + 1].
        dtype: dtype of the result.
        places: int64 [P], for each rank the address of its words, as `exchange_kernel` takes them.
        calls: int32 [most heads], how often this rank has exchanged so many heads.
        rank: This rank.

    Returns:
        The output [B, Hq, D] over the keys of all ranks.
    """
    from heteroring.kernels.decode_kernel import exchange_kernel

    count, batch, heads, width = parts.shape
    out = parts.new_empty((batch, heads, width - 1), dtype=dtype)
    total = batch * heads
    _launch(
        exchange_kernel,
        (min(total, _EXCHANGERS), 1, 1),
        (parts, out, places, calls),
        (*parts.stride()[:3], *out.stride()[:2], count, heads, total, rank, calls.shape[0]),
        {
            "RANKS": places.shape[0],
            "WIDTH": WORDS,
            "HEAD_DIM": width - 1,
            "BLOCK_S": _BLOCK_S,
            "BLOCK_D": _power_of_two(width - 1),
        },
    )
    return out


_PREPARED = LaunchCache()


def _launch(
    kernel: Any,
    grid: tuple[int, int, int],
    operands: tuple[Tensor | int, ...],
    rest: tuple[int | float, ...],
    constants: Mapping[str, Any],
    stages: int = 3,
) -> None:
    """Run `kernel` on `operands`, the arguments that change from call to call, then `rest`, the same for a kind.

    The launch is prepared, and the kernel compiled, in the first call of its kind. A launch by Triton, which looks the
    compiled kernel up by its arguments, would take the host three times as long.
    """
    first = operands[0]
    assert isinstance(first, Tensor)
    kinds = tuple((x.dtype, x.data_ptr() % 16) if isinstance(x, Tensor) else int for x in operands)
    key = (kernel.__name__, grid, first.device, kinds, rest, *constants.values())
    _PREPARED.kept(key, lambda: _bound(kernel, grid, operands, rest, constants, stages))((), *operands)


def _bound(
    kernel: Any,
    grid: tuple[int, int, int],
    operands: tuple[Tensor | int, ...],
    rest: tuple[int | float, ...],
    constants: Mapping[str, Any],
    stages: int,
) -> Callable[..., None]:
    import triton

    first = operands[0]
    assert isinstance(first, Tensor)
    if not isinstance(kernel, triton.runtime.JITFunction):  # Triton's interpreter
        return lambda _, *others: kernel[grid](*others, *rest, **constants)
    with torch.cuda.device(first.device if first.is_cuda else -1):
        compiled = kernel.warmup(*operands, *rest, **constants, num_warps=4, num_stages=stages, grid=grid)
        return BoundKernel.of(compiled[grid], (), (*rest, *constants.values()), first.device.index)


def cut(n: int, rows: int, most: int) -> int:
    """Into how many chunks keys are cut; all but the last have equally many tiles.

    The kernel cuts any number of keys in the same way, into as many chunks as it has programs.

    Args:
        n: Number of keys.
        rows: Keys of a tile.
        most: Most chunks.

    Returns:
        The number of chunks, 1 or more.
    """
    tiles = -(-n // rows)
    return max(1, -(-tiles // max(1, -(-tiles // most))))


def _rows(head_dim: int, itemsize: int) -> int:
    """Keys per tile, such that a few stages of keys and values fit the shared memory of every GPU since 8.0."""
    return max(16, min(64, 16384 // (_power_of_two(head_dim) * itemsize)))


def _power_of_two(x: int) -> int:
    return 1 << (x - 1).bit_length()


@cache
def _sm_count(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
