"""Module `fms`: FMS's attention layer over the ring, from hidden states to hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist

from heteroring.bench.random_layer import positions, random_layer
from heteroring.bench.ring.job import RingCell, RingJob
from heteroring.bench.shape import same_on_every_rank
from heteroring.bench.timing import Busy
from heteroring.bench.verify import verify_hidden_states
from heteroring.bench.wrap_module import wrap_computing
from heteroring.fms import Ring
from heteroring.kernels.backend import resolve
from heteroring.launch.heartbeat import beat
from heteroring.launch.launch import Rank
from heteroring.ring.attention import ring_attention
from heteroring.ring.partition import Partition
from heteroring.ring.shard import shard


class FmsModule:
    """A Module: projections, rotary positions, causal attention and output projection of random hidden states.

    Its results are compared with those of the same layer for the whole prompt on this rank, by PyTorch's attention.
    """

    def __init__(self, rank: Rank, job: RingJob, backend: str, busy: Busy) -> None:
        self._rank, self._transport = rank, job.transport
        lengths, device = job.lengths("fms"), rank.torch_device
        self._layer = random_layer(job.shape, max(lengths), job.seed, device)
        self._inputs, self._expected = {}, {}
        for seq_len in lengths:
            inputs = job.shape.hidden_states(seq_len, job.seed, device)
            (self._inputs[seq_len],) = same_on_every_rank((inputs,))
            beat()
            self._expected[seq_len] = self._layer(inputs)

        def wrap(function: Callable) -> Callable:
            return busy.wrap(rank.throttle.wrap(function))

        wrap_computing(self._layer, wrap)
        self._attend = resolve(backend, device).wrapped(wrap)
        self._empty = [
            torch.empty(job.shape.batch, heads, 0, job.shape.head_dim, dtype=job.shape.torch_dtype, device=device)
            for heads in (job.shape.heads, job.shape.kv_heads, job.shape.kv_heads)
        ]
        # A ring of this rank alone. Every rank must take part in creating every group.
        self._alone = [dist.new_group([each]) for each in range(rank.world_size)][rank.rank]

    @contextmanager
    def prepared(self, cell: RingCell) -> Iterator[Callable[[], torch.Tensor] | None]:
        """The call of a cell on this rank within the context; None if this rank does not take part."""
        partition, seq_len = cell.partition, cell.partition.seq_len
        hidden = shard(self._inputs[seq_len], partition, self._rank.rank, dim=1)
        at = positions(partition, self._rank.rank, hidden.device)
        if cell.system == "alone":
            whole = Partition.contiguous((seq_len,))
            ring = Ring(whole, self._alone, self._attend, self._transport)
        else:
            ring = Ring(partition, None, self._attend, self._transport)
        if hidden.shape[1]:
            yield partial(self._layer, hidden, position_ids=at, attn_name="ring", ring=ring)
        elif cell.system == "alone":
            yield None
        else:  # FMS cannot rotate an empty tensor, and the others wait for this rank in the ring
            yield partial(self._attend_to_nothing, partition)

    def _attend_to_nothing(self, partition: Partition) -> torch.Tensor:
        ring_attention(*self._empty, partition, block=self._attend, transport=self._transport)
        return next(iter(self._inputs.values()))[:, :0]

    def verify(self, cell: RingCell, result: torch.Tensor) -> None:
        """Compare rows of the result with the layer of one process; raises WrongResult."""
        partition = cell.partition
        verify_hidden_states(result, self._expected[partition.seq_len], partition, self._rank.rank, cell.label)
