"""The tensor maps of TMA: what they require of the memory that they describe, and their reuse for similar tensors."""

from __future__ import annotations

from torch import Tensor

ALIGNMENT = 16  # bytes: of every address and stride


def fits(x: Tensor) -> bool:
    """Whether a tensor map can describe `x`, whose last dimension is contiguous.

    Its address and the strides of its other dimensions are multiples of 16 bytes, and none of them is broadcast.
    """
    step = ALIGNMENT // x.element_size()
    strides = [stride for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    return x.data_ptr() % ALIGNMENT == 0 and all(s > 0 and s % step == 0 for s in strides)


def strides(x: Tensor) -> list[int]:
    """The strides of `x`; those of dimensions of one element, which have no effect, are made valid for TMA."""
    step = ALIGNMENT // x.element_size()
    row = -(-x.shape[-1] // step) * step
    return [stride if size > 1 else row for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True)] + [1]


def likeness(x: Tensor) -> tuple[object, ...]:
    """Everything about `x` that its tensor map depends on, but for its address."""
    return x.shape, x.stride(), x.dtype, x.data_ptr() % ALIGNMENT


def addressed(descriptor: object, x: Tensor | None) -> object:
    """A copy of one of Triton's descriptors that points at `x`, a tensor of the likeness for which it was made.

    With None for `x` it points nowhere, and keeps no tensor alive.
    """
    # Not by copy.copy, which takes 1 us longer, several times per call.
    other = object.__new__(type(descriptor))
    other.__dict__.update(descriptor.__dict__, base=x)
    return other
