"""Attention itself: queries, keys and values in, its output out. PyTorch's own is measured beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from heteroring.bench.job import PEERS, Cell, Job
from heteroring.bench.launch import Rank
from heteroring.bench.shape import same_on_every_rank
from heteroring.bench.timing import Busy
from heteroring.bench.verify import verify_rows
from heteroring.kernels.block import resolve
from heteroring.ring.prefill import ring_attention
from heteroring.ring.shard import shard


class AttentionModule:
    """A Module: causal attention of random q [B, Hq, N, D] to random k and v [B, Hkv, N, D]."""

    def __init__(self, rank: Rank, job: Job, block: str, busy: Busy) -> None:
        self._rank, self._job = rank, job
        self._block = busy.wrap(rank.throttle.wrap(resolve(block, rank.torch_device)))
        self._inputs = {
            n: same_on_every_rank(job.shape.inputs(n, job.seed, rank.torch_device)) for n in job.lengths("attention")
        }

    @contextmanager
    def prepared(self, cell: Cell) -> Iterator[Callable[[], Any] | None]:
        scale, inputs, throttle = self._job.shape.scale, self._inputs[cell.partition.seq_len], self._rank.throttle
        if cell.system == "context_parallel":
            from heteroring.bench.context_parallel import context_parallel_call

            with context_parallel_call(inputs, scale) as call:
                yield throttle.wrap(call)
            return
        q, k, v = (shard(x, cell.partition, self._rank.rank, dim=2) for x in inputs)
        if cell.system == "ring":
            yield partial(ring_attention, q, k, v, cell.partition, block=self._block, transport=self._job.transport)
        elif not q.shape[2]:
            yield None
        elif cell.system == "alone":
            yield partial(self._block, q, k, v, scale=scale, causal_offset=0)
        else:
            from heteroring.bench.context_parallel import single_gpu_call

            yield throttle.wrap(single_gpu_call((q, k, v), scale))

    def verify(self, cell: Cell, result: Any) -> None:
        out, lse = (result, None) if cell.system in PEERS else result
        inputs = self._inputs[cell.partition.seq_len]
        verify_rows(out, lse, *inputs, cell.partition, self._rank.rank, self._job.shape.scale, cell.label)
