"""The Triton kernel of matrix products: TMA loads, and persistent programs that compute one tile after another.

Import this only where Triton is installed. Names as in triton_kernel: `i_` the number of a tile, `b_` a tile in
registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["m", "programs"])
def matmul_kernel(
    a, b, out, m, n, k, programs,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    B_BY_COLUMNS: tl.constexpr, COLUMNS_FIRST: tl.constexpr,
):  # fmt: skip
    """Tiles of out [m, n] = a [m, k] @ b [k, n]: every `programs`-th one, from this program's number on.

    a, b and out are tensor descriptors with blocks [BLOCK_M, BLOCK_K], [BLOCK_K, BLOCK_N] and [BLOCK_M, BLOCK_N]. With
    B_BY_COLUMNS, b describes the transposed matrix [n, k], as weights are stored, with blocks [BLOCK_N, BLOCK_K]. With
    COLUMNS_FIRST, a tile is computed transposed: a wgmma takes at least 64 rows, most of which would be empty for an a
    of few rows, but as few as 8 columns. Sums are taken in fp32 and rounded once.
    """
    num_m = tl.cdiv(m, BLOCK_M)
    num_n = tl.cdiv(n, BLOCK_N)
    for i_tile in tl.range(tl.program_id(0), num_m * num_n, programs, flatten=True):
        # GROUP tile rows run side by side, so that tiles that run together share operands in L2.
        i_first = i_tile // (GROUP * num_n) * GROUP
        height = min(num_m - i_first, GROUP)
        i_m = i_first + i_tile % (GROUP * num_n) % height
        i_n = i_tile % (GROUP * num_n) // height
        b_out = tl.zeros((BLOCK_N, BLOCK_M) if COLUMNS_FIRST else (BLOCK_M, BLOCK_N), tl.float32)
        for i_k in range(tl.cdiv(k, BLOCK_K)):
            b_a = a.load([i_m * BLOCK_M, i_k * BLOCK_K])
            if B_BY_COLUMNS:  # noqa: SIM108 the arms of a ternary must have one shape
                b_b = b.load([i_n * BLOCK_N, i_k * BLOCK_K]).T
            else:
                b_b = b.load([i_k * BLOCK_K, i_n * BLOCK_N])
            b_out = tl.dot(b_b.T, b_a.T, b_out) if COLUMNS_FIRST else tl.dot(b_a, b_b, b_out)
        if COLUMNS_FIRST:
            b_out = b_out.T
        out.store([i_m * BLOCK_M, i_n * BLOCK_N], b_out.to(out.dtype))
