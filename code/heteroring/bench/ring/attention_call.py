"""Module `attention`: the attention call itself, by the ring and by PyTorch's baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from heteroring.bench.ring.job import BASELINES, RingCell, RingJob
from heteroring.bench.shape import same_on_every_rank
from heteroring.bench.timing import Busy
from heteroring.bench.verify import verify_rows
from heteroring.kernels.backend import BACKENDS, PendingKVBackend, resolve
from heteroring.launch.launch import Rank
from heteroring.ring.attention import ring_attention
from heteroring.ring.cuda_graph import CapturedRing
from heteroring.ring.partition import Partition
from heteroring.ring.shard import shard


class AttentionModule:
    """A Module: causal attention of random q [B, Hq, N, D] to random k and v [B, Hkv, N, D]."""

    def __init__(self, rank: Rank, job: RingJob, backend: str, busy: Busy) -> None:
        self._rank, self._job = rank, job
        self._captured = job.condition == "captured"

        def measured(name: str) -> PendingKVBackend:
            throttled = resolve(name, rank.torch_device).wrapped(rank.throttle.wrap)
            return throttled if self._captured else throttled.wrapped(busy.wrap)

        self._attend = measured(backend)
        self._others = {name: measured(name) for name in job.call_variants if name in BACKENDS}
        self._inputs = {
            n: same_on_every_rank(job.shape.inputs(n, job.seed, rank.torch_device)) for n in job.lengths("attention")
        }
        # Groups of one rank each, to capture a rank alone. Every rank must take part in creating every group.
        self._alone = self._captured and [dist.new_group([each]) for each in range(rank.world_size)][rank.rank]

    @contextmanager
    def prepared(self, cell: RingCell) -> Iterator[Callable[[], Any] | None]:
        """The call of a cell on this rank within the context; None if this rank does not take part."""
        scale, inputs, throttle = self._job.shape.scale, self._inputs[cell.partition.seq_len], self._rank.throttle
        if cell.system == "context_parallel":
            from heteroring.bench.ring.torch_baselines import context_parallel_call

            with context_parallel_call(inputs, scale) as call:
                yield throttle.wrap(call)
            return
        q, k, v = (shard(x, cell.partition, self._rank.rank, dim=2) for x in inputs)
        ring = self._ways(cell)
        if self._captured and (cell.in_ring or q.shape[2]):
            whole = Partition.contiguous((cell.partition.seq_len,))
            partition, group = (cell.partition, None) if cell.in_ring else (whole, self._alone)
            call = CapturedRing(q, k, v, partition, group, **ring)
            call()  # the first replay uploads the graph
            yield call
            torch.cuda.empty_cache()  # frees the previous graph's private memory
        elif cell.in_ring:
            yield partial(ring_attention, q, k, v, cell.partition, **ring)
        elif not q.shape[2]:
            yield None
        elif cell.system == "alone":
            yield partial(self._attend, q, k, v, scale=scale, causal_offset=0)
        else:
            from heteroring.bench.ring.torch_baselines import single_gpu_call

            yield throttle.wrap(single_gpu_call((q, k, v), scale))

    def _ways(self, cell: RingCell) -> dict[str, Any]:
        """The backend and the transport of `cell`: the job's, unless the cell's variants change them."""
        attend = next((self._others[name] for name in cell.variants if name in self._others), self._attend)
        if "unfused" in cell.variants:
            attend = PendingKVBackend(attend)
        return {"block": attend, "transport": "p2p" if "p2p" in cell.variants else self._job.transport}

    def verify(self, cell: RingCell, result: Any) -> None:
        """Compare rows of the result with fp64; raises WrongResult."""
        out, lse = (result, None) if cell.system in BASELINES else result
        inputs = self._inputs[cell.partition.seq_len]
        verify_rows(out, lse, *inputs, cell.partition, self._rank.rank, self._job.shape.scale, cell.label)
