"""The Triton kernel of heteroring.kernels.merge: a merge in one pass over memory, for CUDA.

Import this only where Triton is installed. Names as in triton_kernel: `i_` the number of a program, `o_` offsets,
`p_` pointers, `b_` a tile in registers, `m_` a mask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK_M = 32


@triton.jit(do_not_specialize=["num_heads", "m"])
def merge_kernel(
    out, lse, part_out, part_lse,
    stride_ob, stride_oh, stride_om, stride_lb, stride_lh, stride_lm,
    stride_pb, stride_ph, stride_pm, stride_nb, stride_nh, stride_nm,
    num_heads, m,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Merge rows of (part_out, part_lse) into (out, lse): a tile [BLOCK_M, HEAD_DIM] of one head.

    out, part_out [batch, num_heads, m, HEAD_DIM]; lse, part_lse fp32 [batch, num_heads, m]. Arithmetic in fp32,
    rounded once, to the dtype of out.
    """
    i_b = (tl.program_id(1) // num_heads).to(tl.int64)
    i_h = (tl.program_id(1) % num_heads).to(tl.int64)
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_row = o_row < m
    m_tile = m_row[:, None] & (o_d < HEAD_DIM)[None, :]
    p_lse = lse + i_b * stride_lb + i_h * stride_lh + o_row * stride_lm
    p_part_lse = part_lse + i_b * stride_nb + i_h * stride_nh + o_row * stride_nm
    p_out = out + i_b * stride_ob + i_h * stride_oh + o_row[:, None] * stride_om + o_d[None, :]
    p_part = part_out + i_b * stride_pb + i_h * stride_ph + o_row[:, None] * stride_pm + o_d[None, :]

    b_old = tl.load(p_lse, mask=m_row, other=float("-inf"))
    b_new = tl.load(p_part_lse, mask=m_row, other=float("-inf"))
    b_out = tl.load(p_out, mask=m_tile, other=0.0).to(tl.float32)
    b_part = tl.load(p_part, mask=m_tile, other=0.0).to(tl.float32)

    # -inf - -inf would be NaN: where one side saw no key, the other stays as it is. A NaN in the data stays one.
    b_had = b_old != float("-inf")
    b_has = b_new != float("-inf")
    b_gap = tl.where(b_had & b_has, tl.where(b_has, b_new, 0.0) - tl.where(b_had, b_old, 0.0), 0.0)
    b_small = tl.exp(-tl.abs(b_gap))
    b_major = 1.0 / (1.0 + b_small)
    b_weight = tl.where(b_gap >= 0, b_major, b_small * b_major)
    b_rest = tl.where(b_gap >= 0, b_small * b_major, b_major)
    b_weight = tl.where(b_has, tl.where(b_had, b_weight, 1.0), 0.0)
    b_rest = tl.where(b_has, tl.where(b_had, b_rest, 0.0), 1.0)
    b_lse = tl.maximum(b_old, b_new) + tl.where(b_had & b_has, tl.log(1.0 + b_small), 0.0)
    b_out = b_rest[:, None] * b_out + b_weight[:, None] * b_part
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_tile)
    tl.store(p_lse, b_lse, mask=m_row)


def merge_(out: torch.Tensor, lse: torch.Tensor, part_out: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Run the kernel; see `heteroring.kernels.merge.merge_`. Nothing happens for no rows.

    Args:
        out: Output [B, H, m, D], contiguous in its last dimension, which is changed.
        lse: Its LSE [B, H, m], fp32, of any strides, which is changed.
        part_out: Output over other keys, contiguous in its last dimension.
        part_lse: Its LSE.
    """
    batch, heads, m, head_dim = out.shape
    if not out.numel():
        return
    with torch.cuda.device(out.device if out.is_cuda else -1):
        merge_kernel[(triton.cdiv(m, _BLOCK_M), batch * heads)](
            out,
            lse,
            part_out,
            part_lse,
            *(*out.stride()[:3], *lse.stride(), *part_out.stride()[:3], *part_lse.stride()),
            *(heads, m),
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            BLOCK_M=_BLOCK_M,
            num_warps=4,
        )
