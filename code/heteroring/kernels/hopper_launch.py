"""Host side of the Hopper kernel: which operands it covers, and its launch.

A ring computes the same rectangles again and again, and a launch must take the host less time than the GPU takes to
compute. So everything that follows from shapes, strides and dtypes is worked out once, as a `PreparedLaunch`; running
it fills in addresses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from heteroring.kernels import launch_configs, tensor_map
from heteroring.kernels.launch_cache import BoundKernel, LaunchCache
from heteroring.kernels.pending_kv import PendingKV

ARCHITECTURE = (9, 0)
BLOCK_M = launch_configs.HOPPER_BLOCK_M


@dataclass(frozen=True, slots=True)
class PreparedLaunch:
    """A launch of the Hopper kernel on operands of certain shapes, strides and dtypes."""

    kernel: BoundKernel
    blind: int  # leading queries, whole tiles of them, that see no key
    merge: bool

    def launch(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pending: PendingKV | None = None
    ) -> None:
        """Run the kernel on operands like those that the launch was prepared for.

        Args:
            q: Queries [B, Hq, m, D].
            k: Keys [B, Hkv, n, D].
            v: Values [B, Hkv, n, D].
            out: Where the output is written, or merged into [B, Hq, m, D].
            lse: The same for the LSE [B, Hq, m].
            pending: Further keys and values that the kernel waits for.
        """
        if self.blind:
            if not self.merge:
                out[:, :, : self.blind].zero_()
                lse[:, :, : self.blind].fill_(-math.inf)
            q, out, lse = (x[:, :, self.blind :] for x in (q, out, lse))
        keys_and_values = (k, v, *((pending.k, pending.v) if pending else (k, v)))
        self.kernel((q, *keys_and_values), out, lse, pending.arrived if pending else 0)


def covers(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the Hopper kernel takes these operands, which `triton_backend.check` has passed.

    It needs a Hopper GPU, 16-bit operands, addresses and strides that are multiples of 16 bytes, and no broadcast
    dimension. All other operands run the portable kernel.
    """
    return (
        q.is_cuda
        and q.element_size() == 2
        and torch.cuda.get_device_capability(q.device) == ARCHITECTURE
        and all(map(tensor_map.fits, (q, k, v)))
        and _kernel() is not None
    )


def can_fuse(q: Tensor, k: Tensor, v: Tensor, pending: PendingKV) -> bool:
    """Whether the kernel covers these operands, and can go on from them to `pending`."""
    key = (q.device, *map(tensor_map.likeness, (q, k, v, pending.k, pending.v)))
    return _FUSABLE.kept(key, lambda: pending.k.shape[2] > 0 and covers(q, k, v) and covers(q, pending.k, pending.v))


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal_offset: int | None,
    merge: bool,
    config: launch_configs.HopperConfig | None = None,
    pending: PendingKV | None = None,
) -> PreparedLaunch | None:
    """Plan a launch of the Hopper kernel; the kernel is compiled in the first call with such operands.

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
        pending: Further keys and values that the kernel waits for.

    Returns:
        The prepared launch, or None where the kernel does not cover the operands, or cannot go on to `pending`.
    """
    if not q.is_cuda:
        return None
    fused = (pending.first_query, pending.heads, *map(tensor_map.likeness, pending[:2])) if pending else None
    key = (q.device.index, scale, causal_offset, merge, config, fused, *map(tensor_map.likeness, (q, k, v, out, lse)))

    def made() -> PreparedLaunch | None:
        covered = can_fuse(q, k, v, pending) if pending else covers(q, k, v)
        return _make(q, k, v, out, lse, scale, causal_offset, merge, config, pending) if covered else None

    return _PREPARED.kept(key, made)


_PREPARED = LaunchCache()
_FUSABLE = LaunchCache()


def _make(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal_offset: int | None,
    merge: bool,
    config: launch_configs.HopperConfig | None,
    pending: PendingKV | None,
) -> PreparedLaunch:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batch, heads, m, head_dim = q.shape
    n, offset, blind = k.shape[2], k.shape[2], 0
    if causal_offset is not None:
        # Tiles of queries that see no key are not launched, and keys that no query sees are cut off: they are never
        # read, so a NaN in them cannot reach a result.
        blind = max(0, -causal_offset) // BLOCK_M * BLOCK_M
        n = min(n, m + causal_offset)
        m, offset = m - blind, causal_offset + blind
    block_d = launch_configs.padded(head_dim)
    config = config or launch_configs.HOPPER[block_d]
    group = heads // k.shape[1]
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    pending_keys, pending_query = (pending.k.shape[2], pending.first_query - blind) if pending else (0, 0)
    lead = launch_configs.lead(m, pending_keys, pending_query)
    section = launch_configs.section(batch * heads, group, n + pending_keys, head_dim, q.element_size())
    first = 0
    if pending:
        waiting = max(1, -(-(q.shape[2] - pending.first_query) // BLOCK_M))
        sms = torch.cuda.get_device_properties(q.device).multi_processor_count
        first = launch_configs.first_section(section, group, waiting, sms)
    own = (k, n), (v, n)
    keys_and_values = (*own, *(((pending.k, pending_keys), (pending.v, pending_keys)) if pending else own))
    descriptors = tuple(
        TensorDescriptor(x, [*x.shape[:2], tokens, head_dim], tensor_map.strides(x), [1, 1, rows, block_d], layout)
        for x, tokens, rows in (
            (q, m, BLOCK_M // 2),
            *((x, tokens, config.block_n) for x, tokens in keys_and_values),
        )
    )
    rest = (
        *(*out.stride()[:3], *lse.stride()),
        *(heads, m, n, offset, lead),
        scale * math.log2(math.e),
        *(first, (batch * heads - first) % section, section),
        *(pending_keys, pending_query, pending.heads if pending else 1),
    )
    constants = {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_N": config.block_n,
        "BLOCK_D": block_d,
        "STAGES": config.stages,
        "CAUSAL": causal_offset is not None,
        "MERGE": merge,
        "Q_IN_REGISTERS": config.q_in_registers,
        "PENDING": pending is not None,
    }
    grid = (-(-(m + lead) // BLOCK_M) * batch * heads, 1, 1)
    out, lse = out[:, :, blind:], lse[:, :, blind:]
    with torch.cuda.device(q.device):
        arrived = pending.arrived if pending else 0
        compiled = _kernel().warmup(*descriptors, out, lse, arrived, *rest, **constants, num_warps=4, grid=grid)
        run = compiled[grid]
    return PreparedLaunch(BoundKernel.of(run, descriptors, (*rest, *constants.values()), q.device.index), blind, merge)


@lru_cache(maxsize=1)
def _kernel():
    """The kernel, or None where this Triton has no Gluon for Hopper."""
    try:
        from heteroring.kernels.hopper_kernel import forward_kernel
    except ImportError:
        return None
    return forward_kernel
