"""Checks of a rank's queries, keys and values, which prefill and decode share."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch

from heteroring.arguments import finite
from heteroring.kernels.backend import Backend, check_backend

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]


def operands(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, block: str | Backend, verb: str
) -> Operands:
    """q, k and v as every backend takes them, and the scale, which is 1/sqrt(D) for None.

    Kernels read the last dimension as contiguous, and PyTorch's give their output the strides of q. So a tensor is
    copied if its last dimension is not contiguous or its rows overlap. On CUDA it is also copied if its rows do not
    begin at multiples of 16 bytes, for which cuDNN gives NaN. All other strides are free, also those of expanded
    tensors.

    What a call of the same kind has passed, and has not copied, is not checked again.

    Raises ValueError naming the first rule that the operands of `verb` break: types, shapes, dtypes, layouts, devices,
    scale, backend.
    """
    kind = _kind(q, k, v, scale, block)
    if kind in _passed:
        return q, k, v, _passed[kind]
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"{name} is of type {type(x).__name__}: it must be a tensor [B, H, n, D]")
        if x.layout != torch.strided or x.is_nested:
            raise ValueError(f"{name} is {'nested' if x.is_nested else x.layout}: it must be a dense, strided tensor")
    if any(x.dim() != 4 for x in (q, k, v)):
        raise ValueError(f"{shapes_of(q, k, v)}: each must be [B, H, n, D]")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"{shapes_of(q, k, v)}: k and v must have one shape, and q their batch and head dimension")
    if q.shape[0] < 1 or q.shape[3] < 1:
        raise ValueError(f"{shapes_of(q, k, v)}: batch and head dimension must be at least 1")
    if k.shape[1] < 1 or q.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads and k has {k.shape[1]}: the first must be a multiple of the second")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
        raise ValueError(
            f"q is {q.dtype}, k {k.dtype}, v {v.dtype}: they must be of one floating-point dtype of 16, 32 or 64 bits"
        )
    if not q.device == k.device == v.device:
        raise ValueError(f"q is on {q.device}, k on {k.device}, v on {v.device}: they must be on one device")
    if q.device.type not in ("cpu", "cuda"):
        raise ValueError(f"q is on {q.device}: there are kernels for cpu and cuda")
    scale = 1.0 / math.sqrt(q.shape[3]) if scale is None else finite("scale", scale)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError(f"an input requires a gradient, and {verb} is forward only: call it under torch.no_grad()")
    check_backend(block, q.device.type, q.dtype)
    passed = in_rows(q), in_rows(k), in_rows(v)
    if kind is not None and all(x is given for x, given in zip(passed, (q, k, v), strict=True)):
        if len(_passed) >= _MOST_KINDS:
            _passed.clear()
        _passed[kind] = scale
    return *passed, scale


_passed: dict[Hashable, float] = {}  # the scale of every kind
_MOST_KINDS = 4096


def _kind(q: Any, k: Any, v: Any, scale: Any, block: Any) -> Hashable:
    """All that the checks look at, or None for what may not even be tensors."""
    try:
        chosen = block if isinstance(block, str) else callable(block)
        kind = (scale, type(scale), chosen, torch.is_grad_enabled(), _likeness(q), _likeness(k), _likeness(v))
        hash(kind)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return kind


def _likeness(x: torch.Tensor) -> tuple[object, ...]:
    place = x.data_ptr() % 16
    return type(x), x.layout, x.is_nested, x.shape, x.stride(), x.dtype, x.device, x.requires_grad, place


def in_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as every backend takes it: itself, or a copy."""
    return x if _in_rows(x) and _aligned(x) else x.clone(memory_format=torch.contiguous_format)


def _in_rows(x: torch.Tensor) -> bool:
    """Whether each row of `x` is contiguous and overlaps no other row in part; rows may coincide, as when expanded."""
    if x.is_contiguous():
        return True
    (batch, head, token, last), row = x.stride(), x.shape[3]
    return last == 1 and (token >= row or not token) and (head >= row or not head) and (batch >= row or not batch)


def _aligned(x: torch.Tensor) -> bool:
    """Whether the rows of `x` begin at multiples of 16 bytes; also true off CUDA, or where a copy would not help."""
    if not x.is_cuda or x.shape[3] * x.element_size() % 16:
        return True
    return not (x.data_ptr() % 16 or any(stride * x.element_size() % 16 for stride in x.stride()[:3]))


def described(q: torch.Tensor, k: torch.Tensor, scale: float) -> tuple[tuple[str, object], ...]:
    """(field, value) pairs of the operands, in which all ranks must agree."""
    return (
        ("device", q.device.type),
        ("dtype", str(q.dtype)),
        ("batch", q.shape[0]),
        ("query heads", q.shape[1]),
        ("KV heads", k.shape[1]),
        ("head dimension", q.shape[3]),
        ("scale", scale),
    )


def shapes_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
