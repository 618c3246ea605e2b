"""The Hopper kernel, in Gluon: TMA loads, and a softmax that overlaps with the wgmma products.

A program computes 128 queries of one head with twelve warps: two warpgroups of 64 queries each, and one warp that
keeps a ring of key and value tiles in shared memory filled. Inside a warpgroup the product Q K^T of the next tile and
the product P V of the last one are in flight while the softmax of the current tile runs (the schedule of
FlashAttention-3, arXiv 2407.08608, section 3.2). docs/experiments/kernels.md has the measurements.

Key tiles are read from the last visible one down to the first, so the masked ones come first. Tiles of pending KV are
read from the first one up, so the masked ones come last. Import this only where Triton is installed;
`heteroring.kernels.hopper_launch` launches it. Names as in `triton_kernel`, and `s_` for shared memory, `t_` for a
product in flight.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from heteroring.kernels.launch_configs import HOPPER_BLOCK_M

ROWS = gl.constexpr(64)  # queries of one warpgroup: the M of wgmma
BLOCK_M = gl.constexpr(HOPPER_BLOCK_M)
LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def _load(
    q, k, v, pending_k, pending_v, arrived, s_q, q_full, ring,
    i_b, i_h, i_kv, first_row, num_own, num_tiles, pending_part,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, PENDING: gl.constexpr,
):  # fmt: skip
    """The loading warp: both halves of the query tile, then key and value tiles as stages of the ring become free."""
    mbarrier.expect(q_full, 2 * q.block_type.nbytes)
    tma.async_copy_global_to_shared(q, [i_b, i_h, first_row, 0], q_full, s_q.index(0))
    tma.async_copy_global_to_shared(q, [i_b, i_h, first_row + ROWS, 0], q_full, s_q.index(1))
    _load_tiles(k, v, ring, i_b, i_kv, 0, num_own, (num_own - 1) * BLOCK_N, -BLOCK_N, STAGES)
    if PENDING and num_tiles > num_own:
        _await(arrived, pending_part + 1)
        _load_tiles(pending_k, pending_v, ring, i_b, i_kv, num_own, num_tiles, -num_own * BLOCK_N, BLOCK_N, STAGES)


@gluon.jit
def _await(address, least):
    """Wait until the counter at `address` is `least` or more; data written before that can then be loaded.

    A copy engine counts, on behalf of a peer. The fence is for TMA, which reads through another proxy than the load of
    the counter.
    """
    gl.inline_asm_elementwise(
        """{
        .reg .pred there;
        again:
        ld.acquire.sys.global.u32 $0, [$1];
        setp.ge.u32 there, $0, $2;
        @there bra done;
        nanosleep.u32 100;
        bra again;
        done:
        fence.proxy.async.global;
        }""",
        "=r,l,r",
        [address, least],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _load_tiles(k, v, ring, i_b, i_kv, first, last, key, STEP: gl.constexpr, STAGES: gl.constexpr):
    """Load tiles first .. last - 1, of which tile t begins at key + t * STEP of k and v."""
    s_k, k_full, k_free, s_v, v_full, v_free = ring
    for t in range(first, last):
        stage = t % STAGES
        parity = (t // STAGES) & 1
        mbarrier.wait(k_free.index(stage), parity ^ 1)
        mbarrier.expect(k_full.index(stage), k.block_type.nbytes)
        tma.async_copy_global_to_shared(k, [i_b, i_kv, key + t * STEP, 0], k_full.index(stage), s_k.index(stage))
        mbarrier.wait(v_free.index(stage), parity ^ 1)
        mbarrier.expect(v_full.index(stage), v.block_type.nbytes)
        tma.async_copy_global_to_shared(v, [i_b, i_kv, key + t * STEP, 0], v_full.index(stage), s_v.index(stage))


@gluon.jit
def _softmax(b_s, b_max, o_last, key, log2_scale, MASKED: gl.constexpr, BLOCK_N: gl.constexpr, LAYOUT: gl.constexpr):
    """Unnormalised weights of one score tile, the new row maxima (scaled), and the factor for the earlier sums.

    o_last [ROWS] is the last key that each row sees. A row that has seen no key yet keeps the maximum -inf. The carried
    maximum is the one that is subtracted, scaled and rounded, so that the factor is exactly 1 while the maximum stays;
    otherwise each tile would add a rounding error.
    """
    if MASKED:
        o_key = key + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, LAYOUT))
        b_s = gl.where(o_key[None, :] <= o_last[:, None], b_s, float("-inf"))
    b_new = gl.maximum(b_max, gl.max(b_s, 1) * log2_scale)
    b_shift = b_new
    if MASKED:
        b_shift = gl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = gl.exp2(b_s * log2_scale - b_shift[:, None])
    return b_p, b_new, gl.exp2(b_max - b_shift)


@gluon.jit
def _row_sums(b_p):
    """[ROWS, 8] sums of [ROWS, BLOCK_N] over the columns that one thread holds, without exchange between threads."""
    return gl.sum(b_p.reshape([b_p.shape[0], b_p.shape[1] // 8, 8]), 1)


@gluon.jit
def _pack(b_p, dtype: gl.constexpr):
    """Pairs of neighbouring columns as 16-bit halves of one int32, so that the loop carries them without repacking."""
    b_low, b_high = gl.split(b_p.reshape([b_p.shape[0], b_p.shape[1] // 2, 2]))
    KIND: gl.constexpr = "bf16x2" if dtype == gl.bfloat16 else "f16x2"
    return gl.inline_asm_elementwise(
        "cvt.rn." + KIND + ".f32 $0, $2, $1;", "=r,r,r", [b_low, b_high], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def _unpack(b_packed, DTYPE: gl.constexpr, LAYOUT: gl.constexpr):
    """The left operand [ROWS, BLOCK_N] of the product with V, from the output of `_pack`."""
    b_low, b_high = gl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [b_packed], dtype=(gl.int16, gl.int16), is_pure=True, pack=1
    )
    b_p = gl.join(b_low, b_high).reshape([b_packed.shape[0], b_packed.shape[1] * 2])
    return gl.convert_layout(b_p.to(DTYPE, bitcast=True), gl.DotOperandLayout(0, LAYOUT, 2))


@gluon.jit
def _rescale(b_acc, b_factor):
    return b_acc * gl.convert_layout(b_factor, gl.SliceLayout(1, b_acc.type.layout))[:, None]


@gluon.jit
def _accumulate_tiles(
    b_packed, b_acc, b_decay, b_max, b_sum, a_q, ring, o_last, log2_scale, first, last, num_tiles, key,
    STEP: gl.constexpr, MASKED: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_D: gl.constexpr,
    STAGES: gl.constexpr, DTYPE: gl.constexpr, L_S: gl.constexpr, L_O: gl.constexpr,
):  # fmt: skip
    """Accumulate tiles first .. last - 1. On entry to each, its K has arrived and P of the tile before is packed.

    With MASKED, tile t begins at key + t * STEP.
    """
    s_k, k_full, k_free, s_v, v_full, v_free = ring
    for t in range(first, last):
        stage = t % STAGES
        before = (t - 1) % STAGES
        b_zero = gl.zeros([ROWS, BLOCK_N], gl.float32, L_S)
        b_k = s_k.index(stage).reshape([BLOCK_N, BLOCK_D]).permute([1, 0])
        t_s = warpgroup_mma(a_q, b_k, b_zero, use_acc=False, is_async=True)
        b_acc = _rescale(b_acc, b_decay)
        mbarrier.wait(v_full.index(before), ((t - 1) // STAGES) & 1)
        b_v = s_v.index(before).reshape([BLOCK_N, BLOCK_D])
        t_acc = warpgroup_mma(_unpack(b_packed, DTYPE, L_O), b_v, b_acc, is_async=True)

        b_s = warpgroup_mma_wait(1, deps=[t_s])
        mbarrier.arrive(k_free.index(stage))
        b_p, b_max, b_decay = _softmax(b_s, b_max, o_last, key + t * STEP, log2_scale, MASKED, BLOCK_N, L_S)
        b_sum = _rescale(b_sum, b_decay) + _row_sums(b_p)
        # This wait belongs to the next tile. It stands here because ptxas moves the exponentials above past the wait
        # for P V below, which would end the overlap, but not past the branch of a barrier wait.
        mbarrier.wait(k_full.index((t + 1) % STAGES), ((t + 1) // STAGES) & 1, pred=t + 1 < num_tiles)
        b_acc, b_packed = warpgroup_mma_wait(0, deps=[t_acc, b_packed])
        mbarrier.arrive(v_free.index(before))
        b_packed = _pack(b_p, DTYPE)
    return b_packed, b_acc, b_decay, b_max, b_sum


@gluon.jit
def _attend(
    out, lse, stride_om, stride_lm, s_q, q_full, ring,
    first_row, m, n, offset, log2_scale, num_own, num_masked, num_whole, num_tiles, pending_keys, pending_query,
    WARPGROUP: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_D: gl.constexpr,
    STAGES: gl.constexpr, DTYPE: gl.constexpr, MERGE: gl.constexpr, Q_IN_REGISTERS: gl.constexpr,
    PENDING: gl.constexpr,
):  # fmt: skip
    """One of the two computing warpgroups: row first_row + 64 WARPGROUP and the 63 after it.

    The first num_masked tiles are masked, and all from num_whole on.
    """
    s_k, k_full, k_free, s_v, v_full, _v_free = ring
    L_S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    L_O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])
    o_row = first_row + WARPGROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, L_S))
    o_last = gl.minimum(o_row + offset, n - 1)
    b_max = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, L_S))
    b_acc = gl.zeros([ROWS, BLOCK_D], gl.float32, L_O)
    b_zero = gl.zeros([ROWS, BLOCK_N], gl.float32, L_S)

    mbarrier.wait(q_full, 0)
    a_q = s_q.index(WARPGROUP).reshape([ROWS, BLOCK_D])
    if Q_IN_REGISTERS:
        a_q = a_q.load(gl.DotOperandLayout(0, L_S, 2))
    mbarrier.wait(k_full.index(0), 0)
    b_k = s_k.index(0).reshape([BLOCK_N, BLOCK_D]).permute([1, 0])
    t_s = warpgroup_mma(a_q, b_k, b_zero, use_acc=False, is_async=True)
    b_s = warpgroup_mma_wait(0, deps=[t_s])
    mbarrier.arrive(k_free.index(0))
    b_p, b_max, b_decay = _softmax(b_s, b_max, o_last, (num_own - 1) * BLOCK_N, log2_scale, True, BLOCK_N, L_S)
    b_sum = _row_sums(b_p)
    mbarrier.wait(k_full.index(1 % STAGES), (1 // STAGES) & 1, pred=num_tiles > 1)
    b_packed = _pack(b_p, DTYPE)
    b_packed, b_acc, b_decay, b_max, b_sum = _accumulate_tiles(
        b_packed, b_acc, b_decay, b_max, b_sum, a_q, ring, o_last, log2_scale, 1, num_masked, num_tiles,
        (num_own - 1) * BLOCK_N, -BLOCK_N, True, BLOCK_N, BLOCK_D, STAGES, DTYPE, L_S, L_O,
    )  # fmt: skip
    b_packed, b_acc, b_decay, b_max, b_sum = _accumulate_tiles(
        b_packed, b_acc, b_decay, b_max, b_sum, a_q, ring, o_last, log2_scale, gl.maximum(num_masked, 1), num_whole,
        num_tiles, 0, BLOCK_N, False, BLOCK_N, BLOCK_D, STAGES, DTYPE, L_S, L_O,
    )  # fmt: skip
    if PENDING:
        o_last = gl.where(o_row >= pending_query, pending_keys - 1, -1)
        b_packed, b_acc, b_decay, b_max, b_sum = _accumulate_tiles(
            b_packed, b_acc, b_decay, b_max, b_sum, a_q, ring, o_last, log2_scale, gl.maximum(num_whole, 1), num_tiles,
            num_tiles, -num_own * BLOCK_N, BLOCK_N, True, BLOCK_N, BLOCK_D, STAGES, DTYPE, L_S, L_O,
        )  # fmt: skip
    t = num_tiles - 1
    b_acc = _rescale(b_acc, b_decay)
    mbarrier.wait(v_full.index(t % STAGES), (t // STAGES) & 1)
    b_v = s_v.index(t % STAGES).reshape([BLOCK_N, BLOCK_D])
    t_acc = warpgroup_mma(_unpack(b_packed, DTYPE, L_O), b_v, b_acc, is_async=True)
    b_acc, b_packed = warpgroup_mma_wait(0, deps=[t_acc, b_packed])

    b_sum = gl.convert_layout(gl.sum(b_sum, 1), gl.SliceLayout(1, L_S))
    # Not `b_sum > 0`, so that a NaN in the input stays one in the output.
    b_some = b_max != float("-inf")
    b_sum = gl.where(b_some, b_sum, 1.0)
    b_lse = gl.where(b_some, b_max * LN_2 + gl.log(b_sum), float("-inf"))
    b_out = _rescale(b_acc, 1.0 / b_sum)

    o_row_out = gl.convert_layout(o_row, gl.SliceLayout(1, L_O))
    o_d = gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, L_O))
    m_row = (o_row >= 0) & (o_row < m)
    m_tile = ((o_row_out >= 0) & (o_row_out < m))[:, None] & (o_d < HEAD_DIM)[None, :]
    p_lse = lse + o_row.to(gl.int64) * stride_lm
    p_out = out + o_row_out.to(gl.int64)[:, None] * stride_om + o_d[None, :]
    if MERGE:
        # As in triton_kernel.forward_kernel.
        b_old = gl.load(p_lse, mask=m_row, other=float("-inf"))
        b_old_out = gl.load(p_out, mask=m_tile, other=0.0).to(gl.float32)
        b_had = b_old != float("-inf")
        b_gap = gl.where(b_some & b_had, b_lse - b_old, 0.0)
        b_small = gl.exp(-gl.abs(b_gap))
        b_weight = gl.where(b_gap >= 0, 1.0, b_small) / (1.0 + b_small)
        b_weight = gl.where(b_some, gl.where(b_had, b_weight, 1.0), 0.0)
        b_lse = gl.maximum(b_old, b_lse) + gl.where(b_some & b_had, gl.log(1.0 + b_small), 0.0)
        b_out = b_old_out + _rescale(b_out - b_old_out, b_weight)
    gl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_tile)
    gl.store(p_lse, b_lse, mask=m_row)


# Shard lengths differ from rank to rank and from call to call, and must not trigger a compilation.
VARIED = [
    "num_heads", "m", "n", "offset", "lead", "first", "second", "section", "stride_lb", "stride_lh", "stride_lm",
    "arrived", "pending_keys", "pending_query", "pending_heads",
]  # fmt: skip


@gluon.jit(do_not_specialize=VARIED)
def forward_kernel(
    q, k, v, pending_k, pending_v, out, lse, arrived, stride_ob, stride_oh, stride_om, stride_lb, stride_lh, stride_lm,
    num_heads, m, n, offset, lead, log2_scale, first, second, section, pending_keys, pending_query, pending_heads,
    GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_D: gl.constexpr,
    STAGES: gl.constexpr, CAUSAL: gl.constexpr, MERGE: gl.constexpr, Q_IN_REGISTERS: gl.constexpr,
    PENDING: gl.constexpr,
):  # fmt: skip
    """Attention of 128 queries of one head over its visible keys, of which there must be at least one.

    The first tile begins `lead` rows before the first query.

    With PENDING, queries from pending_query on then also see the pending_keys keys of pending_k and pending_v. They
    arrive in groups of pending_heads KV heads; the counter at address `arrived` is the number of groups that are there.
    Without PENDING those arguments are not used.

    q, k, v are tensor descriptors over [batch, heads, tokens, HEAD_DIM] with blocks [1, 1, 64, BLOCK_D] (q) and
    [1, 1, BLOCK_N, BLOCK_D] (k, v); everything else is as in triton_kernel.forward_kernel. Launch with num_warps=4.
    """
    # Heads run together in sections, so that their keys stay in L2: `first`, then `second`, then `section` at a time.
    # Narrow sections come first, so that the last one has enough short tiles to end evenly. Within a section, tiles
    # with the most keys start first.
    num_blocks = gl.cdiv(m + lead, BLOCK_M)
    i_inside = gl.program_id(0)
    first_head = 0
    width = first
    if i_inside >= num_blocks * first:
        i_inside -= num_blocks * first
        first_head = first
        width = second
        if i_inside >= num_blocks * second:
            i_inside -= num_blocks * second
            i_section = i_inside // (num_blocks * section)
            i_inside -= num_blocks * section * i_section
            first_head += second + section * i_section
            width = section
    i_m = num_blocks - 1 - i_inside // width
    i_bh = first_head + i_inside % width
    i_b = i_bh // num_heads
    i_h = i_bh % num_heads
    first_row = i_m * BLOCK_M - lead

    # The tile's last row sees `visible` keys; its first row, and so every row, sees `everywhere` keys.
    if CAUSAL:
        visible = gl.minimum(gl.minimum(first_row + BLOCK_M, m) + offset, n)
        everywhere = gl.minimum(gl.maximum(first_row + 1 + offset, 0), n)
    else:
        offset = n
        visible = n
        everywhere = n
    num_own = gl.cdiv(visible, BLOCK_N)
    num_masked = num_own - everywhere // BLOCK_N
    num_whole = num_own
    num_tiles = num_own
    if PENDING:
        # In a tile of queries of which only some rows see the pending keys, all pending tiles are masked.
        num_whole += gl.where(first_row >= pending_query, pending_keys // BLOCK_N, 0)
        num_tiles += gl.where(first_row + BLOCK_M > pending_query, gl.cdiv(pending_keys, BLOCK_N), 0)
    i_kv = i_h // GROUP
    pending_part = (i_b * (num_heads // GROUP) + i_kv) // pending_heads

    DTYPE: gl.constexpr = q.dtype
    s_q = gl.allocate_shared_memory(DTYPE, [2, 1, 1, ROWS, BLOCK_D], q.layout)
    s_k = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK_N, BLOCK_D], k.layout)
    s_v = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK_N, BLOCK_D], v.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_free.index(i), count=2)  # both warpgroups
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_free.index(i), count=2)
    p_out = out + i_b.to(gl.int64) * stride_ob + i_h.to(gl.int64) * stride_oh
    p_lse = lse + i_b.to(gl.int64) * stride_lb + i_h.to(gl.int64) * stride_lh
    ring = (s_k, k_full, k_free, s_v, v_full, v_free)
    gl.warp_specialize(
        [
            (_attend, (
                p_out, p_lse, stride_om, stride_lm, s_q, q_full, ring,
                first_row, m, n, offset, log2_scale, num_own, num_masked, num_whole, num_tiles,
                pending_keys, pending_query,
                0, HEAD_DIM, BLOCK_N, BLOCK_D, STAGES, DTYPE, MERGE, Q_IN_REGISTERS, PENDING,
            )),
            (_attend, (
                p_out, p_lse, stride_om, stride_lm, s_q, q_full, ring,
                first_row, m, n, offset, log2_scale, num_own, num_masked, num_whole, num_tiles,
                pending_keys, pending_query,
                1, HEAD_DIM, BLOCK_N, BLOCK_D, STAGES, DTYPE, MERGE, Q_IN_REGISTERS, PENDING,
            )),
            (_load, (
                q, k, v, pending_k, pending_v, arrived, s_q, q_full, ring,
                i_b, i_h, i_kv, first_row, num_own, num_tiles, pending_part, BLOCK_N, STAGES, PENDING,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
