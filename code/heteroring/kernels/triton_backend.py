"""The Triton backend: one rectangle of queries by keys, dense or causal with an offset.

`backend` runs the Hopper kernel on operands for which `hopper_launch.covers` holds, and the portable kernel on all
others: on every GPU that Triton compiles for, and in Triton's interpreter (TRITON_INTERPRET=1) on the CPU. The module
itself needs neither a GPU nor Triton.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heteroring.kernels import hopper_launch, launch_configs
from heteroring.kernels.pending_kv import PendingKV

MOST_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def backend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal_offset: int | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    out_dtype: torch.dtype | None = None,
    pending: PendingKV | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of queries to keys, as `heteroring.kernels.backend.Backend` defines it.

    Args:
        q: Queries [B, Hq, m, D], D at most MOST_HEAD_DIM.
        k: Keys [B, Hkv, n, D].
        v: Values [B, Hkv, n, D].
        scale: Factor on the scores.
        causal_offset: Query i sees key j if j <= i + causal_offset; None: all keys.
        running: (out, lse) to merge into, of any strides but for a contiguous last dimension of out; None: a new
            result.
        out_dtype: dtype of a new output, without `running`; None: that of q.
        pending: Further keys and values that the kernel waits for after k and v: for a new result, scale > 0 and
            operands for which `takes_pending` holds.

    Returns:
        (out, lse): out [B, Hq, m, D] and lse [B, Hq, m] in fp32 and natural log.

    Raises:
        ValueError: For operands that break a rule.
        RuntimeError: Where Triton or a device is missing.
    """
    check(q, k, v, scale, causal_offset, running, out_dtype)
    m, n = q.shape[2], k.shape[2]
    if pending and not (running is None and scale > 0 and _all_see(q, k, causal_offset)):
        raise ValueError(_CANNOT_FUSE)
    if running is None:
        out = q.new_empty(q.shape, dtype=out_dtype or q.dtype)
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    else:
        out, lse = running
    causal = causal_offset is not None and causal_offset < n - 1
    if q.numel() == 0 or n == 0 or (causal and causal_offset <= -m):
        if running is None:
            out.zero_()
            lse.fill_(-math.inf)
        return out, lse
    if scale <= 0:  # the kernel takes the maximum of the unscaled scores
        q, scale = q * (-1 if scale < 0 else 0), abs(scale) or 1.0
    offset = causal_offset if causal else None
    prepared = hopper_launch.prepare(q, k, v, out, lse, scale, offset, merge=running is not None, pending=pending)
    if pending and not prepared:
        raise ValueError(_CANNOT_FUSE)
    if prepared:
        prepared.launch(q, k, v, out, lse, pending)
    elif q.dtype == torch.bfloat16 and not q.is_cuda:
        # Triton's interpreter multiplies the bit patterns of bf16 as integers: it gets fp32, rounded after.
        wide = out.float()
        launch(q.float(), k.float(), v.float(), wide, lse, scale, offset, merge=running is not None)
        out.copy_(wide)
    else:
        launch(q, k, v, out, lse, scale, offset, merge=running is not None)
    return out, lse


def takes_pending(q: Tensor, k: Tensor, v: Tensor, causal_offset: int | None, pending: PendingKV) -> bool:
    """Whether `backend` can go on to pending KV in the same pass.

    That needs the Hopper kernel and, if causal, at least one own key for every query.

    Args:
        q: Queries [B, Hq, m, D].
        k: Keys [B, Hkv, n, D].
        v: Values [B, Hkv, n, D].
        causal_offset: As in `backend`.
        pending: The further keys and values.

    Returns:
        Whether it can.
    """
    return _all_see(q, k, causal_offset) and hopper_launch.can_fuse(q, k, v, pending)


_CANNOT_FUSE = "pending KV needs a new result, scale > 0 and operands for which takes_pending holds"


def _all_see(q: Tensor, k: Tensor, causal_offset: int | None) -> bool:
    """Whether there are queries and keys, every query sees a key, and every key is seen."""
    seen = causal_offset is None or (causal_offset >= 0 and k.shape[2] <= q.shape[2] + causal_offset)
    return seen and min(q.numel(), k.numel()) > 0


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    causal_offset: int | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    out_dtype: torch.dtype | None = None,
) -> None:
    """Check operands of `backend`, whose arguments these are.

    Raises:
        ValueError: Naming the operand and the rule that it breaks.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} has {x.dim()} dimensions, but must be [batch, heads, tokens, head_dim]")
        if x.dtype != q.dtype or x.dtype not in DTYPES:
            raise ValueError(f"{name} is {x.dtype}, but q, k, v must share one of bfloat16, float16, float32")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, but q is on {q.device}")
        if x.numel() and x.stride(3) != 1:
            raise ValueError(f"{name} has stride {x.stride(3)} in its last dimension, but must have 1")
    head_dim = q.shape[3]
    if head_dim > MOST_HEAD_DIM:
        raise ValueError(f"head_dim is {head_dim}, but must be {MOST_HEAD_DIM} or less")
    if v.shape != k.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}, but must have that of k, {tuple(k.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[3] != head_dim:
        raise ValueError(f"k has shape {tuple(k.shape)}, but must share batch and head_dim with {tuple(q.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads, but must have a multiple of the {k.shape[1]} heads of k")
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}, but must be finite")
    if causal_offset is not None and int(causal_offset) != causal_offset:
        raise ValueError(f"causal_offset is {causal_offset}, but must be None or an integer")
    results = (q.dtype, torch.float32)
    if out_dtype not in (None, *results):
        raise ValueError(f"out_dtype is {out_dtype}, but must be None, {q.dtype} or torch.float32")
    if running is None:
        return
    wanted = (
        ("running out", running[0], q.shape, results),
        ("running lse", running[1], q.shape[:3], (torch.float32,)),
    )
    for name, x, shape, dtypes in wanted:
        if x.shape != shape or x.dtype not in dtypes or x.device != q.device:
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}, but must be "
                f"{' or '.join(map(str, dict.fromkeys(dtypes)))} {tuple(shape)} on {q.device}"
            )
    if running[0].numel() and running[0].stride(3) != 1:
        raise ValueError(f"running out has stride {running[0].stride(3)} in its last dimension, but must have 1")


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal_offset: int | None,
    merge: bool,
    config: launch_configs.Config | None = None,
    skip: bool = True,
) -> None:
    """Run the portable kernel on operands that `check` has passed.

    Args:
        q: Queries [B, Hq, m, D].
        k: Keys [B, Hkv, n, D].
        v: Values [B, Hkv, n, D].
        out: Where the output is written, or merged into [B, Hq, m, D].
        lse: The same for the LSE [B, Hq, m].
        scale: Factor on the scores, above 0.
        causal_offset: Query i sees key j if j <= i + causal_offset; None: all keys. At least one key must be visible.
        merge: Whether the result is merged into `out` and `lse`.
        config: Launch configuration in place of the tuned one.
        skip: Whether to leave out tiles of keys that no query sees.
    """
    kernel = _kernel(q.device)
    batch, heads, m, head_dim = q.shape
    n = k.shape[2]
    causal = causal_offset is not None
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else None
    config = config or launch_configs.lookup(capability, head_dim, "causal" if causal else "dense", q.element_size())
    group = heads // k.shape[1]
    grid = (-(-m // config.block_m) * batch * heads,)
    with torch.cuda.device(q.device if q.is_cuda else -1):
        kernel[grid](
            q,
            k,
            v,
            out,
            lse,
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *lse.stride()),
            *(batch, heads, m, n, causal_offset if causal else 0),
            scale * math.log2(math.e),
            launch_configs.section(batch * heads, group, n, head_dim, q.element_size()),
            GROUP=group,
            HEAD_DIM=head_dim,
            BLOCK_D=launch_configs.padded(head_dim),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            CAUSAL=causal,
            SKIP=skip,
            MERGE=merge,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=config.warps,
            num_stages=config.stages,
        )


def _kernel(device: torch.device):
    """The compiled or interpreted kernel, or RuntimeError saying what is missing for it on `device`."""
    try:
        import triton

        from heteroring.kernels.triton_kernel import forward_kernel
    except ImportError as error:
        raise RuntimeError(f"the triton backend needs triton, which fails to import: {error}") from error
    if device.type != "cuda" and isinstance(forward_kernel, triton.runtime.JITFunction):
        raise RuntimeError(
            "the triton backend runs on CUDA tensors, or in Triton's interpreter (TRITON_INTERPRET=1 in the "
            f"environment before the first call); these tensors are on {device}"
        )
    return forward_kernel
