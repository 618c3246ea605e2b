"""Triton kernels of split-KV decode: attention to chunks of the keys of a head, and the merge of partial results.

Import this only where Triton is installed; `heteroring.kernels.decode_split` launches it. Names as in triton_kernel:
`i_` the number of a program, `o_` a vector of offsets, `p_` pointers, `b_` a tile in registers, `m_` a mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _read_tile(
    b_acc, b_max, b_sum, b_q, p_k, p_v, stride_kn, stride_vn, start, stop, log2_scale,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, HEAD_DIM: tl.constexpr,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Accumulate keys start .. start + BLOCK_N - 1, if RAGGED only those before `stop`, into the running softmax."""
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    at = tl.cast(start, tl.int64)
    p_k_tile = p_k + (at + o_n)[:, None] * stride_kn + o_d[None, :]
    p_v_tile = p_v + (at + o_n)[:, None] * stride_vn + o_d[None, :]
    m_key = start + o_n < stop
    if RAGGED:
        m_load = m_key[:, None] & (o_d < HEAD_DIM)[None, :]
        b_k = tl.load(p_k_tile, mask=m_load, other=0.0)
        b_v = tl.load(p_v_tile, mask=m_load, other=0.0)
    elif HEAD_DIM < BLOCK_D:
        m_dim = (o_d < HEAD_DIM)[None, :]
        b_k = tl.load(p_k_tile, mask=m_dim, other=0.0)
        b_v = tl.load(p_v_tile, mask=m_dim, other=0.0)
    else:
        b_k = tl.load(p_k_tile)
        b_v = tl.load(p_v_tile)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * log2_scale
    if RAGGED:
        b_s = tl.where(m_key[None, :], b_s, float("-inf"))
    # A tile that is read has a key that is seen, so the maximum is finite from the first tile on.
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    b_p = tl.math.exp2(b_s - b_new[:, None])
    b_decay = tl.math.exp2(b_max - b_new)
    b_sum = b_sum * b_decay + tl.sum(b_p, 1)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision=PRECISION)
    return b_acc, b_new, b_sum


# The number of keys grows by one with every token: no argument derived from it may trigger a compilation.
@triton.jit(do_not_specialize=["kv_heads", "n", "stride_ps", "stride_pb", "stride_ph"])
def chunk_kernel(
    q, k, v, parts, n,
    stride_qb, stride_qh, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ps, stride_pb, stride_ph,
    kv_heads, log2_scale,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    COUNTED: tl.constexpr,
):  # fmt: skip
    """Attention of the GROUP queries of one KV head to one of its chunks of keys, each of equally many whole tiles.

    q [batch, kv_heads * GROUP, HEAD_DIM], k and v [batch, kv_heads, n or more, HEAD_DIM], parts fp32 [chunks, batch,
    kv_heads * GROUP, HEAD_DIM + 1]: out, then the LSE in natural log. `n` is the number of keys, or if COUNTED the
    address of that number on the device. `log2_scale` is scale * log2(e). Without keys out is 0 and the LSE -inf.
    Grid: chunks x (batch * kv_heads).
    """
    keys = tl.load(n).to(tl.int32) if COUNTED else n
    chunk = tl.cdiv(keys, BLOCK_N * tl.num_programs(0)) * BLOCK_N
    i_chunk = tl.program_id(0)
    i_b = (tl.program_id(1) // kv_heads).to(tl.int64)
    i_h = (tl.program_id(1) % kv_heads).to(tl.int64)
    o_g = tl.arange(0, BLOCK_G)
    o_d = tl.arange(0, BLOCK_D)
    o_head = i_h * GROUP + o_g
    m_head = o_g < GROUP
    m_tile = m_head[:, None] & (o_d < HEAD_DIM)[None, :]
    p_k = k + i_b * stride_kb + i_h * stride_kh
    p_v = v + i_b * stride_vb + i_h * stride_vh

    b_q = tl.load(q + i_b * stride_qb + o_head[:, None] * stride_qh + o_d[None, :], mask=m_tile, other=0.0)
    b_max = tl.full([BLOCK_G], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_G], tl.float32)
    b_acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    first = tl.minimum(i_chunk * chunk, keys)
    stop = tl.minimum(first + chunk, keys)
    whole = first + (stop - first) // BLOCK_N * BLOCK_N
    for start in range(first, whole, BLOCK_N):
        b_acc, b_max, b_sum = _read_tile(
            b_acc, b_max, b_sum, b_q, p_k, p_v, stride_kn, stride_vn, start, stop, log2_scale,
            BLOCK_N, BLOCK_D, HEAD_DIM, False, PRECISION,
        )  # fmt: skip
    for start in range(whole, stop, BLOCK_N):
        b_acc, b_max, b_sum = _read_tile(
            b_acc, b_max, b_sum, b_q, p_k, p_v, stride_kn, stride_vn, start, stop, log2_scale,
            BLOCK_N, BLOCK_D, HEAD_DIM, True, PRECISION,
        )  # fmt: skip

    # Not `b_sum > 0`, so that a NaN in the input stays one in the output.
    b_some = b_max != float("-inf")
    b_sum = tl.where(b_some, b_sum, 1.0)
    b_lse = tl.where(b_some, b_max * LN_2 + tl.log(b_sum), float("-inf"))
    p_part = parts + i_chunk.to(tl.int64) * stride_ps + i_b * stride_pb + o_head * stride_ph
    tl.store(p_part[:, None] + o_d[None, :], b_acc / b_sum[:, None], mask=m_tile)
    tl.store(p_part + HEAD_DIM, b_lse, mask=m_head)


@triton.jit
def _add_part(b_acc, b_max, b_sum, b_part, b_lse):
    """Add parts over further keys, b_part [S, D] with b_lse [S], to the running sum of a merge."""
    b_new = tl.maximum(b_max, tl.max(b_lse, 0))
    # Parts without a visible key have LSE -inf: subtracting 0 instead gives exp(-inf) = 0 and no NaN.
    b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_weight = tl.exp(b_lse - b_shift)
    b_decay = tl.exp(b_max - b_shift)
    b_sum = b_sum * b_decay + tl.sum(b_weight, 0)
    b_acc = b_acc * b_decay + tl.sum(b_weight[:, None] * b_part, 0)
    return b_acc, b_new, b_sum


@triton.jit
def _merged(b_acc, b_max, b_sum):
    """out [D] and LSE of a running sum; 0 and -inf where no part has a key."""
    b_seen = b_sum != 0.0
    b_sum = tl.where(b_seen, b_sum, 1.0)
    return b_acc / b_sum, tl.where(b_seen, b_max + tl.log(b_sum), float("-inf"))


@triton.jit
def _merge_parts(p_parts, stride_ps, count, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    """out [BLOCK_D] and LSE of the `count` parts of one head at p_parts, stride_ps apart."""
    o_s = tl.arange(0, BLOCK_S)
    o_d = tl.arange(0, BLOCK_D)
    b_max = float("-inf")
    b_sum = 0.0
    b_acc = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, count, BLOCK_S):
        m_part = start + o_s < count
        p_row = p_parts + (start + o_s).to(tl.int64) * stride_ps
        b_lse = tl.load(p_row + HEAD_DIM, mask=m_part, other=float("-inf"))
        m_tile = m_part[:, None] & (o_d < HEAD_DIM)[None, :]
        b_part = tl.load(p_row[:, None] + o_d[None, :], mask=m_tile, other=0.0)
        b_acc, b_max, b_sum = _add_part(b_acc, b_max, b_sum, b_part, b_lse)
    return _merged(b_acc, b_max, b_sum)


@triton.jit(do_not_specialize=["count", "heads", "stride_ps"])
def combine_kernel(
    parts, out,
    stride_ps, stride_pb, stride_ph, stride_ob, stride_oh,
    count, heads,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, WITH_LSE: tl.constexpr,
):  # fmt: skip
    """Merge the `count` parts of one head into out [batch, heads, HEAD_DIM], or HEAD_DIM + 1 WITH_LSE.

    parts fp32 [count, batch, heads, HEAD_DIM + 1] over disjoint keys. Grid: batch * heads.
    """
    i_b = (tl.program_id(0) // heads).to(tl.int64)
    i_h = (tl.program_id(0) % heads).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    p_parts = parts + i_b * stride_pb + i_h * stride_ph
    b_out, b_lse = _merge_parts(p_parts, stride_ps, count, HEAD_DIM, BLOCK_S, BLOCK_D)
    p_out = out + i_b * stride_ob + i_h * stride_oh
    tl.store(p_out + o_d, b_out.to(out.dtype.element_ty), mask=o_d < HEAD_DIM)
    if WITH_LSE:
        tl.store(p_out + HEAD_DIM, b_lse.to(out.dtype.element_ty))


@triton.jit
def _word(x, call):
    """fp32 `x` in the lower half of a 64-bit word, and the number of the call in the upper half."""
    return (call.to(tl.int64) << 32) | x.to(tl.uint32, bitcast=True).to(tl.int64)


@triton.jit
def _number(word):
    """The fp32 number in the lower half of a word."""
    return word.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["count", "heads", "stride_ps", "total", "rank", "most"])
def exchange_kernel(
    parts, out, places, calls,
    stride_ps, stride_pb, stride_ph, stride_ob, stride_oh,
    count, heads, total, rank, most,
    RANKS: tl.constexpr, WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merge the `count` parts of each head, write the result to every rank, and merge those of all ranks into out.

    parts fp32 [count, batch, heads, HEAD_DIM + 1] of this rank, out [batch, heads, HEAD_DIM], total = batch * heads.
    places int64 [RANKS]: for each rank, the address of its words int64 [2, RANKS, most, WIDTH], by turn, sender and
    head. calls int32 [most]: how often this rank has exchanged parts of that many heads.

    A word holds a number and the number of the call. docs/ring.md says why that needs no flags.
    """
    o_d = tl.arange(0, BLOCK_D)
    m_dim = o_d < HEAD_DIM
    for i in range(tl.program_id(0), total, tl.num_programs(0)):
        p_parts = parts + (i // heads).to(tl.int64) * stride_pb + (i % heads).to(tl.int64) * stride_ph
        b_out, b_lse = _merge_parts(p_parts, stride_ps, count, HEAD_DIM, BLOCK_S, BLOCK_D)
        call = tl.load(calls + i) + 1
        place = (((call & 1) * RANKS + rank).to(tl.int64) * most + i) * WIDTH
        for reader in range(RANKS):
            p_words = tl.load(places + reader).to(tl.pointer_type(tl.int64)) + place
            tl.store(p_words + o_d, _word(b_out, call), mask=m_dim)
            tl.store(p_words + HEAD_DIM, _word(b_lse, call))
    tl.debug_barrier()
    p_own = tl.load(places + rank).to(tl.pointer_type(tl.int64))
    for i in range(tl.program_id(0), total, tl.num_programs(0)):
        call = tl.load(calls + i) + 1
        b_max = float("-inf")
        b_sum = 0.0
        b_acc = tl.zeros([BLOCK_D], tl.float32)
        for sender in range(RANKS):
            p_words = p_own + (((call & 1) * RANKS + sender).to(tl.int64) * most + i) * WIDTH
            missing = 1
            b_out = tl.zeros([BLOCK_D], tl.int64)
            b_lse = tl.zeros([1], tl.int64)
            while missing > 0:
                b_out = tl.load(p_words + o_d, mask=m_dim, other=call.to(tl.int64) << 32, volatile=True)
                b_lse = tl.load(p_words + HEAD_DIM + tl.arange(0, 1), volatile=True)
                late = ((b_out >> 32) != call).to(tl.int32)
                missing = tl.sum(late, 0) + tl.sum(((b_lse >> 32) != call).to(tl.int32), 0)
            b_acc, b_max, b_sum = _add_part(b_acc, b_max, b_sum, _number(b_out)[None, :], _number(b_lse))
        b_out, _ = _merged(b_acc, b_max, b_sum)
        p_out = out + (i // heads).to(tl.int64) * stride_ob + (i % heads).to(tl.int64) * stride_oh
        tl.store(p_out + o_d, b_out.to(out.dtype.element_ty), mask=m_dim)
        tl.debug_barrier()  # every warp has read the number of this call
        tl.store(calls + i, call)
