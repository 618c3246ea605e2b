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

_TAKES_PENDING = {"triton": triton_backend.takes_pending}

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


class PendingKVBackend:
    """A Backend, and whether it can go on to pending KV in the same kernel pass, as the fused first step does.

    Args:
        compute: The Backend that computes; where `takes_pending` holds, it accepts `pending` as one more keyword.
        takes_pending: Whether `compute` can go on to `pending` behind q, k, v and causal_offset; None: it never can.
    """

    def __init__(
        self,
        compute: Backend,
        takes_pending: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int | None, PendingKV], bool] | None = None,
    ) -> None:
        self._compute, self._takes_pending = compute, takes_pending

    def __call__(self, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute as `Backend` says."""
        return self._compute(*args, **options)

    def takes_pending(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal_offset: int | None, pending: PendingKV
    ) -> bool:
        """Whether a call with these arguments may have the keyword `pending`.

        Args:
            q: Queries, as in `Backend`.
            k: Keys.
            v: Values.
            causal_offset: As in `Backend`.
            pending: The further keys and values, which may still be on their way.

        Returns:
            Whether the kernel can go on from k and v to `pending`.
        """
        return self._takes_pending is not None and self._takes_pending(q, k, v, causal_offset, pending)

    def wrapped(self, wrap: Callable[[Callable], Callable]) -> PendingKVBackend:
        """This backend, throttled or timed: `wrap(function)` computes in place of its function.

        Args:
            wrap: Returns a function like the one that it is given, or that one itself.

        Returns:
            The wrapped backend; this one itself where `wrap` changes nothing.
        """
        compute = wrap(self._compute)
        return self if compute is self._compute else PendingKVBackend(compute, self._takes_pending)


def check_backend(backend: str | Backend, device_type: str | None = None, dtype: torch.dtype | None = None) -> None:
    """Check that a backend exists, and computes on a device type and in a dtype.

    Args:
        backend: A callable or "auto", which always pass, or a name.
        device_type: "cpu" or "cuda"; None for any.
        dtype: Dtype of the operands; None for any.

    Raises:
        ValueError: If `backend` is none of these, or names a backend that does not compute there.
    """
    if callable(backend) or (isinstance(backend, str) and backend == "auto"):
        return
    if not isinstance(backend, str) or backend not in _HOME:
        raise ValueError(f"block: backend {backend!r} is unknown: choose auto or {choices(backend, BACKENDS)}")
    interpreted = backend in _IN_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
    if device_type is not None and device_type not in _DEVICE_TYPES[backend] and not interpreted:
        raise ValueError(f"block: backend {backend!r} computes on {_DEVICE_TYPES[backend][0]}, not on {device_type}")
    if dtype is not None and dtype not in _DTYPES.get(backend, (dtype,)):
        raise ValueError(f"block: backend {backend!r} computes {', '.join(map(str, _DTYPES[backend]))}, not {dtype}")


def check_operands(backend: str | Backend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
    """Check that a backend of a name computes some operands.

    They have passed `check_backend` and the ring's own rules. "auto" computes all operands, and a Backend checks its
    own.

    Args:
        backend: Name of a backend, "auto", or a Backend.
        q: Queries [B, Hq, m, D].
        k: Keys [B, Hkv, n, D].
        v: Values [B, Hkv, n, D].
        scale: Factor on the scores.

    Raises:
        ValueError: If the backend does not compute them.
    """
    if backend in _IN_TRITON:
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
    backend: str | Backend, device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128
) -> PendingKVBackend:
    """The backend for operands on a device.

    Args:
        backend: "auto", one of BACKENDS, or a Backend.
        device: The device of the operands.
        dtype: Their dtype.
        head_dim: Elements per head.

    Returns:
        The backend that is named, or `backend` itself, which takes no pending KV unless it is a PendingKVBackend.

    Raises:
        ValueError: For a name that is neither "auto" nor one of BACKENDS.
    """
    if isinstance(backend, str):
        return _imported(backend, device, dtype, head_dim)
    return backend if isinstance(backend, PendingKVBackend) else PendingKVBackend(backend)


@cache
def _imported(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> PendingKVBackend:
    chosen = choose(name, device, dtype, head_dim)
    module, attribute = _HOME[chosen]
    return PendingKVBackend(getattr(import_module(module), attribute), _TAKES_PENDING.get(chosen))
