"""Checks of the arguments of prefill and decode on a rank."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch

from heteroring.arguments import finite, prefix_lengths
from heteroring.kernels.backend import Backend, check_backend
from heteroring.ring.partition import Partition
from heteroring.ring.prefix import Prefix
from heteroring.ring.process_group import is_group
from heteroring.ring.transport.limits import TRANSPORTS
from heteroring.words import choices

PASSING = ("kv", "q")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]


def operands(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, backend: str | Backend, verb: str
) -> Operands:
    """Check q, k and v, and bring them into the form that every backend takes.

    A tensor is copied if its last dimension is not contiguous or its rows overlap, because kernels read it as
    contiguous and PyTorch's give their output the strides of q. On CUDA it is also copied if its rows do not begin at
    multiples of 16 bytes, for which some kernels give NaN. All other strides are free, also those of expanded tensors.
    Operands of a kind that has passed before, and needed no copy, are not checked again.

    Args:
        q: Queries [B, Hq, m, D].
        k: Keys [B, Hkv, n, D]; Hq is a multiple of Hkv.
        v: Values [B, Hkv, n, D].
        scale: Factor on the scores; None stands for 1/sqrt(D).
        backend: Name of a backend, "auto", or a Backend.
        verb: The called function, for error messages.

    Returns:
        (q, k, v, scale).

    Raises:
        ValueError: Naming the first rule that is broken: types, shapes, dtypes, layouts, devices, scale, backend.
    """
    kind = _kind(q, k, v, scale, backend)
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
    check_backend(backend, q.device.type, q.dtype)
    passed = in_rows(q), in_rows(k), in_rows(v)
    if kind is not None and all(x is given for x, given in zip(passed, (q, k, v), strict=True)):
        if len(_passed) >= _MOST_KINDS:
            _passed.clear()
        _passed[kind] = scale
    return *passed, scale


_passed: dict[Hashable, float] = {}  # the scale of every kind
_MOST_KINDS = 4096


def _kind(q: Any, k: Any, v: Any, scale: Any, backend: Any) -> Hashable:
    """Everything that the checks depend on, or None if an operand is no tensor."""
    try:
        chosen = backend if isinstance(backend, str) else callable(backend)
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


def check_partition(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, partition: Partition, rank: int, world_size: int
) -> None:
    """Check that this rank's tensors and the group fit the partition.

    Args:
        q: This rank's queries [B, Hq, n_r, D].
        k: This rank's keys [B, Hkv, n_r, D].
        v: This rank's values [B, Hkv, n_r, D].
        partition: Which tokens each rank should hold.
        rank: This rank.
        world_size: Ranks of the group.

    Raises:
        ValueError: If they do not.
    """
    if not isinstance(partition, Partition):
        raise ValueError(f"partition is {partition!r}: it must be a Partition")
    if partition.world_size != world_size:
        raise ValueError(
            f"the partition has {partition.world_size} ranks ({partition.block_lens}), the group has {world_size}"
        )
    expected = partition.block_lens[rank]
    if q.shape[2] != expected or k.shape[2] != expected:
        raise ValueError(
            f"{shapes_of(q, k, v)}: rank {rank} of block_lens {partition.block_lens} must hold {expected} tokens"
        )


def check_prefix(prefix: Any, k: torch.Tensor, rank: int, world_size: int) -> tuple[int, ...]:
    """Check the earlier tokens that this rank holds.

    Args:
        prefix: A `Prefix`, or None.
        k: The new tokens' keys [B, Hkv, n_r, D].
        rank: This rank.
        world_size: Ranks of the group.

    Returns:
        Earlier tokens by rank; () where all are 0 or there is no prefix.

    Raises:
        ValueError: If `prefix` is no Prefix, or does not fit its lengths, the group, or `k`.
    """
    if prefix is None:
        return ()
    if not isinstance(prefix, Prefix):
        raise ValueError(f"prefix is {prefix!r}: it must be a Prefix, or None")
    lens = prefix_lengths("prefix.lens", prefix.lens, world_size)
    held = lens[rank] if lens else 0
    for name, x in (("prefix.k", prefix.k), ("prefix.v", prefix.v)):
        if not isinstance(x, torch.Tensor) or x.layout != torch.strided or x.is_nested:
            raise ValueError(f"{name} is of type {type(x).__name__}: it must be a dense tensor [B, Hkv, m_r, D]")
        expected = (*k.shape[:2], held, k.shape[3])
        if tuple(x.shape) != expected:
            raise ValueError(
                f"{name} is of shape {tuple(x.shape)}: rank {rank} of prefix.lens {prefix.lens} needs {expected}"
            )
        if x.dtype != k.dtype or x.device != k.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, k {k.dtype} on {k.device}: they must be alike")
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"{name} requires a gradient, and ring_attention is forward only")
    return lens


def check_single_query(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise ValueError unless there is one query, as decode takes it."""
    if q.shape[2] != 1:
        raise ValueError(f"{shapes_of(q, k, v)}: decode takes one query, q has {q.shape[2]}")


def check_capturable(q: torch.Tensor) -> None:
    """Raise ValueError unless `q` is on CUDA, where a call can be recorded as a graph."""
    if not q.is_cuda:
        raise ValueError(f"only work on CUDA can be captured, q is on {q.device}")


def check_group(group: object) -> None:
    """Raise ValueError unless `group` is a ProcessGroup, or None."""
    if not is_group(group):
        raise ValueError(f"group is {group!r}: it must be a ProcessGroup, or None for all processes")


def check_transport(name: str) -> None:
    """Raise ValueError unless `name` is "auto" or one of TRANSPORTS."""
    if name != "auto" and name not in TRANSPORTS:
        raise ValueError(f"transport {name!r} is unknown: choose auto or {choices(name, TRANSPORTS)}")


def check_passing(name: object) -> None:
    """Raise ValueError unless `name` is "auto" or one of PASSING."""
    if not isinstance(name, str) or (name != "auto" and name not in PASSING):
        raise ValueError(f"passing is {name!r}: choose auto or {choices(str(name), PASSING)}")


def check_cached(cached: torch.Tensor, k: torch.Tensor) -> None:
    """Check the number of cached keys; on CUDA, where the host would wait, its value is not checked.

    Args:
        cached: An integer tensor of one element on the device of `k`.
        k: Keys [B, Hkv, m, D].

    Raises:
        ValueError: Unless it can be a number of these keys.
    """
    integer = isinstance(cached, torch.Tensor) and not cached.is_floating_point() and not cached.is_complex()
    if not integer or cached.numel() != 1 or cached.device != k.device:
        raise ValueError(f"cached is {cached!r}: it must be an integer tensor of one element on {k.device}")
    if cached.device.type == "cpu" and not 0 <= int(cached) <= k.shape[2]:
        raise ValueError(f"cached is {int(cached)}, and k has {k.shape[2]} keys")


def described(q: torch.Tensor, k: torch.Tensor, scale: float) -> tuple[tuple[str, object], ...]:
    """What ranks compare of their operands.

    Args:
        q: Queries [B, Hq, m, D].
        k: Keys [B, Hkv, n, D].
        scale: Factor on the scores.

    Returns:
        (field, value) pairs in which all ranks must agree.
    """
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
    """The shapes of q, k and v, for error messages."""
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
