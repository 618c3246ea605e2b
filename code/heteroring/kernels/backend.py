"""The Backend protocol, by which a kernel computes one rectangle of attention, and the backends by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch

from heteroring.kernels import triton_backend
from heteroring.kernels.pending_kv import PendingKV
from heteroring.words import choices

_HOME = {  # backend -> (module, attribute)
    "triton": ("heteroring.kernels.triton_backend", "backend"),
    # For comparison: the portable Triton kernel alone, and the same computing masked tiles, too.
    "portable": ("heteroring.kernels.masked_tiles", "portable"),
    "masked": ("heteroring.kernels.masked_tiles", "masked"),
    "cudnn": ("heteroring.kernels.sdpa", "cudnn"),
    "flash": ("heteroring.kernels.sdpa", "flash"),
    "cpu": ("heteroring.kernels.sdpa", "cpu"),
    "reference": ("heteroring.kernels.reference", "backend"),
}

_IN_TRITON = ("triton", "portable", "masked")
_DEVICE_TYPES = {
    **dict.fromkeys(_IN_TRITON, ("cuda",)),
    "cudnn": ("cuda",),
    "flash": ("cuda",),
    "cpu": ("cpu",),
    "reference": ("cpu", "cuda"),
}

_HALF = (torch.bfloat16, torch.float16)
# Backends that are not named compute all dtypes.
_DTYPES = {**dict.fromkeys(_IN_TRITON, (*_HALF, torch.float32)), "cudnn": _HALF, "flash": _HALF}

BACKENDS = tuple(_HOME)

# (compute capability, head_dim) -> the fastest backend there in bf16 at the lengths of long prompts, as measured in
# docs/experiments/kernels.md; fp16 is assumed to be like bf16. With heads of 64 the Hopper kernel and cuDNN are equally
# fast, but cuDNN rounds each partial result to 16 bits before the merge. Only on dense squares of 2,048 tokens is cuDNN
# faster, by 14 %.
_FASTEST: dict[tuple[tuple[int, int], int], str] = {
    ((9, 0), 64): "triton",
    ((9, 0), 96): "triton",
    ((9, 0), 128): "triton",
    ((9, 0), 256): "triton",
}


class Backend(Protocol):
    """Attention of a rectangle of queries by keys, with the log-sum-exp that lets rectangles be merged."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float,
        causal_offset: int | None = None,
        running: tuple[torch.Tensor, torch.Tensor] | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (out, lse) of one rectangle of queries by keys.

        With `running`, the result is merged into that pair in place, and the pair is returned.

        Args:
            q: Queries [B, Hq, m, D] with a contiguous last dimension and any other strides; m may be 0.
            k: Keys [B, Hkv, n, D] with strides as for q; Hq is a multiple of Hkv, n may be 0.
            v: Values [B, Hkv, n, D], likewise.
            scale: Factor on the scores.
            causal_offset: With o, query i sees key j if and only if j <= i + o; with None, every key.
            running: (out [B, Hq, m, D] in the dtype of q or fp32, lse fp32 [B, Hq, m]) over other keys.
            out_dtype: Dtype of a new out: that of q, the default, or fp32, which leaves a partial result unrounded.

        Returns:
            (out, lse): out [B, Hq, m, D], and lse [B, Hq, m] in natural log and fp32. A query that sees no key has out
            0 and lse -inf.
        """


class PendingKVBackend(Backend, Protocol):
    """A Backend that says whether it can go on to pending KV in the same kernel pass, as the fused first step does.

    Where it says so, it accepts `pending` as one more keyword.
    """

    @property
    def takes_pending(
        self,
    ) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int | None, PendingKV], bool]:
        """Whether the backend can go on to `pending` behind q, k, v and causal_offset.

        As an attribute of the object itself, functools.wraps carries it over to a throttled or timed backend.
        """


class CallOnly:
    """A PendingKVBackend that computes by `backend` and takes no pending KV, whatever `backend` can do."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.takes_pending = _never

    def __call__(self, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._backend(*args, **options)


def _never(*_: object) -> bool:
    return False


def check_backend(block: str | Backend, device_type: str | None = None, dtype: torch.dtype | None = None) -> None:
    """Check that a backend exists, and computes on a device type and in a dtype.

    Args:
        block: A callable or "auto", which always pass, or a name.
        device_type: "cpu" or "cuda"; None for any.
        dtype: Dtype of the operands; None for any.

    Raises:
        ValueError: If `block` is none of these, or names a backend that does not compute there.
    """
    if callable(block) or (isinstance(block, str) and block == "auto"):
        return
    if not isinstance(block, str) or block not in _HOME:
        raise ValueError(f"block backend {block!r} is unknown: choose auto or {choices(block, BACKENDS)}")
    interpreted = block in _IN_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
    if device_type is not None and device_type not in _DEVICE_TYPES[block] and not interpreted:
        raise ValueError(f"block backend {block!r} computes on {_DEVICE_TYPES[block][0]}, not on {device_type}")
    if dtype is not None and dtype not in _DTYPES.get(block, (dtype,)):
        raise ValueError(f"block backend {block!r} computes {', '.join(map(str, _DTYPES[block]))}, not {dtype}")


def check_operands(block: str | Backend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
    """Raise ValueError if `block` names a backend that does not compute such operands.

    The operands have passed `check_backend` and the ring's own rules. "auto" computes all operands, and a Backend
    checks its own.
    """
    if block in _IN_TRITON:
        triton_backend.check(q, k, v, scale)


def choose(name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128) -> str:
    """The name of the backend that `name` stands for on a device.

    Args:
        name: "auto" or one of BACKENDS.
        device: The device of the operands.
        dtype: Their dtype.
        head_dim: Elements per head.

    Returns:
        One of BACKENDS: `name` itself, or for "auto" the fastest one as far as measured.

    Raises:
        ValueError: For a name that is neither "auto" nor one of BACKENDS.
    """
    check_backend(name)
    if name == "auto":
        if device.type == "cpu":
            return "cpu"
        return _fastest_on_cuda(torch.cuda.get_device_capability(device), dtype, head_dim)
    return name


def _fastest_on_cuda(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> str:
    """The backend for tensors of `dtype` and `head_dim`; where none was measured, the one that runs everywhere.

    Exact products of fp32 use no matrix units, and for heads above 64 cuBLAS, by `reference`, is faster at them.
    """
    if dtype in _HALF and (capability, head_dim) in _FASTEST:
        return _FASTEST[capability, head_dim]
    covered = dtype in triton_backend.DTYPES and head_dim <= triton_backend.MOST_HEAD_DIM
    exact = dtype == torch.float32 and head_dim > 64
    return "triton" if covered and not exact else "reference"


def resolve(
    block: str | Backend, device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128
) -> PendingKVBackend:
    """The backend for operands on a device.

    Args:
        block: "auto", one of BACKENDS, or a Backend.
        device: The device of the operands.
        dtype: Their dtype.
        head_dim: Elements per head.

    Returns:
        The backend that `block` names, or `block` itself; without `takes_pending`, wrapped as one that takes none.

    Raises:
        ValueError: For a name that is neither "auto" nor one of BACKENDS.
    """
    return _imported(block, device, dtype, head_dim) if isinstance(block, str) else _complete(block)


@cache
def _imported(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> PendingKVBackend:
    module, attribute = _HOME[choose(name, device, dtype, head_dim)]
    return _complete(getattr(import_module(module), attribute))


def _complete(backend: Any) -> PendingKVBackend:
    # Not by isinstance, which for a protocol costs tens of microseconds per call.
    return backend if hasattr(backend, "takes_pending") else CallOnly(backend)
