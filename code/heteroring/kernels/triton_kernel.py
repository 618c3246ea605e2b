"""The portable Triton kernel: one tile of queries against every visible key, with an online softmax.

Import this only where Triton is installed; `heteroring.kernels.triton_backend` launches it. Names: `i_` the
number of a program or a tile, `o_` a vector of offsets, `p_` pointers, `b_` a tile in registers, `m_` a mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _accumulate_tiles(
    b_acc, b_max, b_sum, b_q, p_k, p_v, stride_kn, stride_vn, o_row,
    i_first, i_last, visible, offset, log2_scale,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, HEAD_DIM: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Accumulate key tiles i_first .. i_last - 1 into b_acc [M, D], b_max [M] (in log2) and b_sum [M].

    MASKED tests every score and guards every read; without it each row sees every key of these tiles.
    """
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    for i_n in range(i_first, i_last):
        start = tl.cast(i_n, tl.int64) * BLOCK_N
        p_k_tile = p_k + start * stride_kn + o_n[:, None] * stride_kn + o_d[None, :]
        p_v_tile = p_v + start * stride_vn + o_n[:, None] * stride_vn + o_d[None, :]
        o_key = i_n * BLOCK_N + o_n
        if MASKED:
            # Keys that no row of this tile sees are not read, so a NaN in one of them cannot give 0 * NaN.
            m_load = (o_key < visible)[:, None] & (o_d < HEAD_DIM)[None, :]
            b_k = tl.load(p_k_tile, mask=m_load, other=0.0)
            b_v = tl.load(p_v_tile, mask=m_load, other=0.0)
        elif HEAD_DIM < BLOCK_D:
            m_dim = (o_d < HEAD_DIM)[None, :]
            b_k = tl.load(p_k_tile, mask=m_dim, other=0.0)
            b_v = tl.load(p_v_tile, mask=m_dim, other=0.0)
        else:
            b_k = tl.load(p_k_tile)
            b_v = tl.load(p_v_tile)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        if MASKED:
            m_visible = (o_key < visible)[None, :]
            if CAUSAL:
                m_visible = m_visible & (o_key[None, :] <= o_row[:, None] + offset)
            b_s = tl.where(m_visible, b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * log2_scale)
        b_shift = b_new
        if MASKED:
            # A row that has seen no key yet keeps -inf; subtracting 0 instead gives exp2(-inf) = 0 and no NaN.
            b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.math.exp2(b_s * log2_scale - b_shift[:, None])
        b_decay = tl.math.exp2(b_max - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_acc = b_acc * b_decay[:, None]
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)
        b_max = b_new
    return b_acc, b_max, b_sum


# Shard lengths differ from rank to rank and from call to call, and must not trigger a compilation.
VARIED = ["num_heads", "m", "n", "offset", "section", "stride_lb", "stride_lh", "stride_lm"]


@triton.jit(do_not_specialize=VARIED)
def forward_kernel(
    q, k, v, out, lse,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om, stride_lb, stride_lh, stride_lm,
    batch, num_heads, m, n, offset, log2_scale, section,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, SKIP: tl.constexpr, MERGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of one query tile [BLOCK_M, HEAD_DIM] of one head over its visible keys.

    q, out [batch, num_heads, m, HEAD_DIM], k, v [batch, num_heads / GROUP, n, HEAD_DIM], lse fp32 [batch,
    num_heads, m], natural log; `log2_scale` is scale * log2(e) > 0. CAUSAL: key j is visible to query i iff
    j <= i + offset. SKIP leaves out tiles of keys that no row sees. MERGE merges into the (out, lse) found in memory.
    Grid: 1-D, query tiles x heads.
    """
    # `section` heads run together, so that their keys stay in L2; of these, tiles with the most keys start first.
    num_tiles = tl.cdiv(m, BLOCK_M)
    i_program = tl.program_id(0)
    i_section = i_program // (num_tiles * section)
    i_inside = i_program - i_section * num_tiles * section
    width = tl.minimum(section, batch * num_heads - i_section * section)
    i_m = num_tiles - 1 - i_inside // width
    i_bh = i_section * section + i_inside % width
    i_b = (i_bh // num_heads).to(tl.int64)
    i_h = (i_bh % num_heads).to(tl.int64)

    o_row = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_row = o_row < m
    m_tile = m_row[:, None] & (o_d < HEAD_DIM)[None, :]
    p_k = k + i_b * stride_kb + (i_h // GROUP) * stride_kh
    p_v = v + i_b * stride_vb + (i_h // GROUP) * stride_vh

    # The tile's last row sees `visible` keys, or all count as seen; its first row, and so every row, sees `everywhere`.
    visible = n
    everywhere = n
    if CAUSAL:
        if SKIP:
            last_row = tl.minimum((i_m + 1) * BLOCK_M, m) - 1
            visible = tl.minimum(tl.maximum(last_row + 1 + offset, 0), n)
        everywhere = tl.minimum(tl.maximum(i_m * BLOCK_M + 1 + offset, 0), n)
    full_tiles = everywhere // BLOCK_N
    all_tiles = tl.cdiv(visible, BLOCK_N)

    if MERGE and visible == 0:
        return

    p_q = q + i_b * stride_qb + i_h * stride_qh + o_row.to(tl.int64)[:, None] * stride_qm + o_d[None, :]
    b_q = tl.load(p_q, mask=m_tile, other=0.0)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_acc, b_max, b_sum = _accumulate_tiles(
        b_acc, b_max, b_sum, b_q, p_k, p_v, stride_kn, stride_vn, o_row,
        0, full_tiles, visible, offset, log2_scale,
        BLOCK_N, BLOCK_D, HEAD_DIM, False, CAUSAL, PRECISION,
    )  # fmt: skip
    b_acc, b_max, b_sum = _accumulate_tiles(
        b_acc, b_max, b_sum, b_q, p_k, p_v, stride_kn, stride_vn, o_row,
        full_tiles, all_tiles, visible, offset, log2_scale,
        BLOCK_N, BLOCK_D, HEAD_DIM, True, CAUSAL, PRECISION,
    )  # fmt: skip

    # Not `b_sum > 0`, so that a NaN in the input stays one in the output.
    b_some = b_max != float("-inf")
    b_sum = tl.where(b_some, b_sum, 1.0)
    b_out = b_acc / b_sum[:, None]
    b_lse = tl.where(b_some, b_max * LN_2 + tl.log(b_sum), float("-inf"))

    p_out = out + i_b * stride_ob + i_h * stride_oh + o_row.to(tl.int64)[:, None] * stride_om + o_d[None, :]
    p_lse = lse + i_b * stride_lb + i_h * stride_lh + o_row.to(tl.int64) * stride_lm
    if MERGE:
        b_old = tl.load(p_lse, mask=m_row, other=float("-inf"))
        b_old_out = tl.load(p_out, mask=m_tile, other=0.0).to(tl.float32)
        # lse = old + softplus(new - old), weight of the new part = sigmoid(new - old), both through
        # exp(-|new - old|), which cannot overflow. Where one side saw no key, the other stays as it is.
        b_had = b_old != float("-inf")
        b_gap = tl.where(b_some & b_had, b_lse - b_old, 0.0)
        b_small = tl.exp(-tl.abs(b_gap))
        b_weight = tl.where(b_gap >= 0, 1.0, b_small) / (1.0 + b_small)
        b_weight = tl.where(b_some, tl.where(b_had, b_weight, 1.0), 0.0)
        b_lse = tl.maximum(b_old, b_lse) + tl.where(b_some & b_had, tl.log(1.0 + b_small), 0.0)
        b_out = b_old_out + b_weight[:, None] * (b_out - b_old_out)
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_tile)
    tl.store(p_lse, b_lse, mask=m_row)
