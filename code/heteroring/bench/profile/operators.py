"""The operators that `heteroring profile` times, by kind and size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from heteroring.bench.profile.job import ProfileJob
from heteroring.bench.verify import verify_product, verify_rows
from heteroring.kernels.backend import PendingKVBackend, resolve
from heteroring.kernels.pending_kv import PendingKV
from heteroring.launch.launch import Rank
from heteroring.results.operator_kinds import FOLD_KEYS
from heteroring.ring.partition import Partition
from heteroring.ring.workload import causal_flops


class Operator(NamedTuple):
    """A call to profile, the floating-point operations that its result takes, and a check of that result.

    `verify` raises WrongResult.
    """

    kind: str
    size: int
    flops: int
    call: Callable[[], Any]
    verify: Callable[[Any], None] | None = None


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
    shape, attend = job.shape, backend(rank, job)
    for seq_len in job.sizes_of("attention"):
        q, k, v = shape.inputs(seq_len, job.seed, rank.torch_device)
        call = partial(attend, q, k, v, scale=shape.scale, causal_offset=0)
        whole, label = Partition.contiguous((seq_len,)), f"attention of {seq_len}"

        def verify(result: tuple[torch.Tensor, torch.Tensor], q=q, k=k, v=v, whole=whole, label=label) -> None:
            verify_rows(*result, q, k, v, whole, 0, shape.scale, label)

        yield Operator("attention", seq_len, shape.flops(seq_len), call, verify)


def _merged_steps(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """Kind `fold`: `size` queries by FOLD_KEYS keys, merged into a running result, a ring step with next to no work.

    The running out has the dtype of the queries, as on a rank with one ring step beyond its own KV.
    """
    shape, attend = job.shape, backend(rank, job)
    for rows in job.sizes_of("fold"):
        q = shape.inputs(rows, job.seed, rank.torch_device)[0]
        _, k, v = shape.inputs(FOLD_KEYS, job.seed, rank.torch_device)
        running = torch.zeros_like(q), torch.zeros(q.shape[:3], device=q.device)
        flops = causal_flops(shape.batch, shape.heads, shape.head_dim, rows * FOLD_KEYS)
        yield Operator("fold", rows, flops, partial(attend, q, k, v, scale=shape.scale, running=running))
    yield from _fused_first_steps(rank, job)


def _fused_first_steps(rank: Rank, job: ProfileJob) -> Iterator[Operator]:
    """Kind `join`, a fused first step: causal attention of `size` tokens that also see FOLD_KEYS pending keys.

    These keys have arrived. There is no operator where the backend cannot go on to pending KV.
    """
    shape, attend = job.shape, backend(rank, job)
    for seq_len in job.sizes_of("fold"):
        q, k, v = shape.inputs(seq_len, job.seed, rank.torch_device)
        _, keys, values = shape.inputs(FOLD_KEYS, job.seed, rank.torch_device)
        there = torch.ones(1, dtype=torch.int32, device=rank.torch_device)
        pending = PendingKV(keys, values, first_query=0, arrived=there.data_ptr(), heads=shape.batch * shape.kv_heads)
        if not attend.takes_pending(q, k, v, 0, pending):
            continue
        flops = shape.flops(seq_len) + causal_flops(shape.batch, shape.heads, shape.head_dim, seq_len * FOLD_KEYS)
        call = partial(_call, there, attend, q, k, v, scale=shape.scale, causal_offset=0, pending=pending)
        yield Operator("join", seq_len, flops, call)


def _call(kept: torch.Tensor, function: Callable[..., object], *args: object, **kwargs: object) -> object:
    """Call `function`; `kept` stays referenced so that its memory outlives the call."""
    return function(*args, **kwargs)


def backend(rank: Rank, job: ProfileJob) -> PendingKVBackend:
    """The backend of attention that the ring would use, slowed."""
    shape = job.shape
    plain = resolve(job.backend, rank.torch_device, shape.torch_dtype, shape.head_dim)
    return plain.wrapped(rank.throttle.wrap)


# Kind -> function that makes its operators, one per size; that of `fold` makes those of `join`, too. All compute in an
# operator is slowed by its rank's throttle.
OPERATORS = {"matmul": _matmuls, "attention": _attentions, "fold": _merged_steps}
