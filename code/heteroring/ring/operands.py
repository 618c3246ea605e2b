"""Rules that queries, keys and values of a rank must keep, whichever way they meet."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from heteroring.kernels.block import Block, check_block


def broken_rule(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, block: str | Block, call: str
) -> str | None:
    """The first rule that this rank's operands of `call` break, in words: shapes, dtypes, devices, scale, block."""
    shapes = shapes_of(q, k, v)
    if any(x.dim() != 4 for x in (q, k, v)):
        return f"{shapes}: each must be [B, H, n, D]"
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        return f"{shapes}: k and v must have one shape, and q their batch and head dimension"
    if q.shape[0] < 1 or q.shape[3] < 1:
        return f"{shapes}: batch and head dimension must be at least 1"
    if k.shape[1] < 1 or q.shape[1] < 1 or q.shape[1] % k.shape[1]:
        return f"q has {q.shape[1]} heads and k has {k.shape[1]}: the first must be a multiple of the second"
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        return f"q is {q.dtype}, k {k.dtype}, v {v.dtype}: they must be of one floating-point dtype"
    if not q.device == k.device == v.device:
        return f"q is on {q.device}, k on {k.device}, v on {v.device}: they must be on one device"
    if not math.isfinite(scale):
        return f"scale is {scale}: it must be finite"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return f"an input requires a gradient, and {call} is forward only: call it under torch.no_grad()"
    return refusal(check_block, block, q.device.type)


def refusal(check: Callable[..., None], *values: object) -> str | None:
    """The ValueError that `check` raises for `values`, in words."""
    try:
        check(*values)
    except ValueError as error:
        return str(error)
    return None


def shapes_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"


def default_scale(q: torch.Tensor) -> float:
    """1/sqrt(D), also where q [B, H, n, D] is yet to be found to lack a dimension."""
    return 1.0 / math.sqrt(max((1, *q.shape[-1:])))
