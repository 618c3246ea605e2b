"""The operators that `heteroring profile` times, by kind and size.

Kinds are registered in `_HERE`, or in `_ELSEWHERE` by the name of a module that is imported only by a job that asks
for its kind. Such a module offers

    check(job: ProfileJob) -> None                            ValueError for what it could not measure, before a start
    operators(rank: Rank, job: ProfileJob) -> Iterator[Operator]       one for each of `sizes`, on the rank itself

and wraps by `rank.throttle.wrap` whatever in its operators computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from heteroring.bench.verify import verify_product, verify_rows
from heteroring.kernels.backend import resolve, takes_pending
from heteroring.kernels.pending_kv import PendingKV
from heteroring.launch.launch import Rank
from heteroring.results.kinds import FOLD_KEYS
from heteroring.ring.partition import Partition
from heteroring.ring.workload import causal_flops
from heteroring.words import choices

if TYPE_CHECKING:
    from heteroring.bench.profile.run import ProfileJob


class Operator(NamedTuple):
    """A call to profile, the floating-point operations that its result takes, and a check of that result.

    `verify` raises WrongResult.
    """

    kind: str
    size: int
    flops: int
    call: Callable[[], Any]
    verify: Callable[[Any], None] | None = None


def check_kinds(job: ProfileJob) -> None:
    """Raise ValueError unless every kind that `job` names is known, named once and can be measured."""
    known = (*_HERE, *_ELSEWHERE)
    if not job.kinds:
        raise ValueError("kinds is empty")
    for kind in job.kinds:
        if kind not in known:
            raise ValueError(f"profile kind {kind!r} is unknown: choose {choices(kind, known)}")
        if job.kinds.count(kind) > 1:
            raise ValueError(f"kinds holds {kind} twice")
        if kind in _ELSEWHERE:
            _module(kind).check(job)


def sizes(kind: str, job: ProfileJob) -> tuple[int, ...]:
    """The sizes at which `job` measures `kind`.

    The cost of a layer is what it takes beside its attention, so attention and folds are measured wherever it is.
    """
    if kind == "matmul":
        return job.sizes
    if kind == "layer":
        return job.fms_seq_lens or job.seq_lens
    if kind in ("attention", "fold"):
        return tuple(dict.fromkeys((*job.seq_lens, *job.fms_seq_lens)))
    return job.seq_lens


def operators(kind: str, rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """The operators of `kind`, one for each of its sizes; of `fold` the joins besides, where the block makes any."""
    return _HERE[kind](rank, job) if kind in _HERE else _module(kind).operators(rank, job)


def _matmuls(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """Products of two square matrices, `size` wide."""
    matmul = rank.throttle.wrap(torch.matmul)
    generator = torch.Generator(rank.torch_device).manual_seed(job.seed)
    for n in job.sizes:
        a, b = torch.randn(2, n, n, generator=generator, device=rank.torch_device, dtype=job.shape.torch_dtype).unbind()
        verify = partial(verify_product, a=a, b=b, label=f"matmul of {n}")
        yield Operator("matmul", n, 2 * n**3, partial(matmul, a, b, out=torch.empty_like(a)), verify)


def _attentions(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """The causal attention of `size` tokens."""
    shape, block = job.shape, _block(rank, job)
    for seq_len in sizes("attention", job):
        q, k, v = shape.inputs(seq_len, job.seed, rank.torch_device)
        call = partial(block, q, k, v, scale=shape.scale, causal_offset=0)
        whole, label = Partition.contiguous((seq_len,)), f"attention of {seq_len}"

        def verify(result: tuple[torch.Tensor, torch.Tensor], q=q, k=k, v=v, whole=whole, label=label) -> None:
            verify_rows(*result, q, k, v, whole, 0, shape.scale, label)

        yield Operator("attention", seq_len, shape.flops(seq_len), call, verify)


def _folds(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """`size` queries by FOLD_KEYS keys, merged into a running result: a ring step with next to no work.

    The running out has the dtype of the queries, as it has where a rank makes one ring step beyond its own KV.
    """
    shape, block = job.shape, _block(rank, job)
    for rows in sizes("fold", job):
        q = shape.inputs(rows, job.seed, rank.torch_device)[0]
        _, k, v = shape.inputs(FOLD_KEYS, job.seed, rank.torch_device)
        running = torch.zeros_like(q), torch.zeros(q.shape[:3], device=q.device)
        flops = causal_flops(shape.batch, shape.heads, shape.head_dim, rows * FOLD_KEYS)
        yield Operator("fold", rows, flops, partial(block, q, k, v, scale=shape.scale, running=running))
    yield from _joins(rank, job)


def _joins(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """Fused first steps: causal attention of `size` tokens that also see FOLD_KEYS further keys, there from the start.

    None where the backend cannot go on to pending KV.
    """
    shape, block = job.shape, _block(rank, job)
    for seq_len in sizes("fold", job):
        q, k, v = shape.inputs(seq_len, job.seed, rank.torch_device)
        _, keys, values = shape.inputs(FOLD_KEYS, job.seed, rank.torch_device)
        there = torch.ones(1, dtype=torch.int32, device=rank.torch_device)
        pending = PendingKV(keys, values, first_query=0, arrived=there.data_ptr(), heads=shape.batch * shape.kv_heads)
        if not takes_pending(block, q, k, v, 0, pending):
            continue
        flops = shape.flops(seq_len) + causal_flops(shape.batch, shape.heads, shape.head_dim, seq_len * FOLD_KEYS)
        call = partial(_call, there, block, q, k, v, scale=shape.scale, causal_offset=0, pending=pending)
        yield Operator("join", seq_len, flops, call)


def _call(kept: torch.Tensor, function: Callable[..., object], *args: object, **kwargs: object) -> object:
    """The function's result; `kept` lives as long as whoever may call."""
    return function(*args, **kwargs)


def _block(rank: Rank, job: ProfileJob) -> Callable[..., object]:
    shape = job.shape
    return rank.throttle.wrap(resolve(job.block, rank.torch_device, shape.torch_dtype, shape.head_dim))


def _module(kind: str) -> ModuleType:
    return import_module(_ELSEWHERE[kind])


_HERE = {"matmul": _matmuls, "attention": _attentions, "fold": _folds}
_ELSEWHERE = {"layer": "heteroring.bench.profile.fms_layer", "block": "heteroring.bench.profile.transformer_block"}
