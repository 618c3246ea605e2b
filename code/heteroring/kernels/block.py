"""One block of attention behind one signature, whatever computes it."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Protocol

import torch

from heteroring.kernels import triton_block
from heteroring.kernels.pending_kv import Late
from heteroring.words import choices

_HOME = {  # backend -> (module, attribute)
    "triton": ("heteroring.kernels.triton_block", "block"),
    "cudnn": ("heteroring.kernels.sdpa", "cudnn"),
    "flash": ("heteroring.kernels.sdpa", "flash"),
    "cpu": ("heteroring.kernels.sdpa", "cpu"),
    "reference": ("heteroring.kernels.reference", "block"),
}

_DEVICE_TYPES = {
    "triton": ("cuda",),
    "cudnn": ("cuda",),
    "flash": ("cuda",),
    "cpu": ("cpu",),
    "reference": ("cpu", "cuda"),
}

_HALF = (torch.bfloat16, torch.float16)
_DTYPES = {"triton": (*_HALF, torch.float32), "cudnn": _HALF, "flash": _HALF}  # the others compute all

BACKENDS = tuple(_HOME)

# (compute capability, head_dim) -> the fastest backend there, by docs/experiments/kernels.md in bf16 at the lengths of
# long prompts; fp16 is taken to be like it. With heads of 64 the Hopper kernel and cuDNN are equally fast, and cuDNN
# rounds each partial result to 16 bits before it is merged. Dense squares of 2,048 tokens are faster by cuDNN, by 14 %.
_FASTEST: dict[tuple[tuple[int, int], int], str] = {
    ((9, 0), 64): "triton",
    ((9, 0), 96): "triton",
    ((9, 0), 128): "triton",
    ((9, 0), 256): "triton",
}


class Block(Protocol):
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
        """Return (out, lse): out [B, Hq, m, D] like q, lse [B, Hq, m] in natural log and fp32.

        q [B, Hq, m, D]; k and v [B, Hkv, n, D] with Hq a multiple of Hkv, each with a contiguous last dimension
        and any other strides; any of m and n may be 0. With `causal_offset` o, query i sees key j if and only if
        j <= i + o; None means dense. A query that sees no key gives out 0 and lse -inf. `out_dtype` (that of q, its
        default, or fp32) is the dtype of a new out: fp32 spares a partial result the rounding.

        With `running` = (out of either dtype, lse fp32) the block is folded into that pair in place, and the pair
        returned.
        """


class PendingKVBlock(Block, Protocol):
    """A Block that can go on, in the same pass, to keys that arrive while it computes.

    Where `takes_late` is true it accepts `late` as one more argument by name.
    """

    def takes_late(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal_offset: int | None, late: Late
    ) -> bool:
        """Whether the block can go on to `late` in the same pass over these operands."""


def takes_late(
    block: Block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal_offset: int | None, late: Late
) -> bool:
    """Whether `block` is a PendingKVBlock that takes `late` with these operands; any other Block takes none.

    Not by isinstance, which costs tens of microseconds of each call for a protocol.
    """
    return hasattr(block, "takes_late") and block.takes_late(q, k, v, causal_offset, late)


def check_block(block: str | Block, device_type: str | None = None, dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless `block` can be called, or is "auto" or one of BACKENDS, one for this device and dtype.

    Without `device_type` any device will do, without `dtype` any dtype.
    """
    if callable(block) or (isinstance(block, str) and block == "auto"):
        return
    if not isinstance(block, str) or block not in _HOME:
        raise ValueError(f"block backend {block!r} is unknown: choose auto or {choices(block, BACKENDS)}")
    interpreted = block == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device_type is not None and device_type not in _DEVICE_TYPES[block] and not interpreted:
        raise ValueError(f"block backend {block!r} computes on {_DEVICE_TYPES[block][0]}, not on {device_type}")
    if dtype is not None and dtype not in _DTYPES.get(block, (dtype,)):
        raise ValueError(f"block backend {block!r} computes {', '.join(map(str, _DTYPES[block]))}, not {dtype}")


def check_operands(block: str | Block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
    """Raise ValueError if `block` is the name of a backend that computes no such operands.

    They have passed `check_block` and the ring's own rules. "auto" computes all, and a Block checks its own.
    """
    if block == "triton":
        triton_block.check(q, k, v, scale)


def choose(name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128) -> str:
    """The backend that `name` stands for on `device`: itself, or for "auto" the best one there for such tensors.

    Raises ValueError for a name that is neither "auto" nor one of BACKENDS.
    """
    check_block(name)
    if name == "auto":
        if device.type == "cpu":
            return "cpu"
        return _fastest_on_cuda(torch.cuda.get_device_capability(device), dtype, head_dim)
    return name


def _fastest_on_cuda(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> str:
    """The backend for tensors of `dtype` and `head_dim`; where nobody measured, one that runs everywhere."""
    if dtype in _HALF and (capability, head_dim) in _FASTEST:
        return _FASTEST[capability, head_dim]
    if dtype in triton_block.DTYPES and head_dim in triton_block.HEAD_DIMS:
        return "triton"
    return "flash" if dtype in _HALF and head_dim <= 256 else "reference"


def resolve(
    block: str | Block, device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128
) -> Block:
    """The Block of backend `block` ("auto" or one of BACKENDS) for tensors on `device`; a Block is its own."""
    return _imported(block, device, dtype, head_dim) if isinstance(block, str) else block


@cache
def _imported(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Block:
    module, attribute = _HOME[choose(name, device, dtype, head_dim)]
    return getattr(import_module(module), attribute)
