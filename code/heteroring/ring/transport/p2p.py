"""The p2p transport: KV by batched send and receive of torch.distributed, with gloo on the CPU and NCCL on CUDA."""

from __future__ import annotations

import torch
import torch.distributed as dist

from heteroring.ring.partition import Partition
from heteroring.ring.transport.comm_stream import comm_stream_of
from heteroring.ring.transport.contiguous_copy import contiguous_copy
from heteroring.ring.transport.messages import Inbox, messages


class PointToPoint:
    """The KV messages of one call, each exactly as long as its receiver needs.

    On CUDA the messages have a communicator of their own, with a high-priority stream beside compute. There, every rank
    posts equally many sends and receives in every step, some of them empty, because lists that differ between ranks
    have been seen to hang NCCL. On the CPU an empty message would only cost time, and is left out.
    """

    fusable = False

    def __init__(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        partition: Partition,
        causal: bool,
        group: dist.ProcessGroup,
        prefix_lens: tuple[int, ...] = (),
    ) -> None:
        self._tensors = k, v
        self._rank, self.world_size = dist.get_rank(group), partition.world_size
        self._ranks = dist.get_process_group_ranks(group)
        self._messages = messages(partition, self._rank, causal, prefix_lens)
        self._inbox = Inbox(k, self._messages.receives)
        self._in_step = k.is_cuda
        self._group = comm_stream_of(group, k.device).communicator if k.is_cuda else group
        self._packed: dict[int, tuple[torch.Tensor, ...]] = {}
        self._pending: dict[int, list[dist.Work]] = {}

    def start(self, step: int) -> None:
        """Post the messages of `step`, a ring step from 1 to world size - 1; nothing if it has none."""
        operations = self._operations(step)
        self._pending[step] = dist.batch_isend_irecv(operations) if operations else []

    def wait(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `step`, each [B, Hkv, keys, D] contiguous."""
        self._finish(step)
        keys, values = self._inbox.room(step).unbind(0)
        return keys, values

    def close(self) -> None:
        """Wait for the messages still under way; the caller may then reuse k and v."""
        for step in sorted(self._pending):
            self._finish(step)

    def _operations(self, step: int) -> list[dist.P2POp]:
        sent, received = self._messages.sends.get(step), self._messages.receives.get(step)
        nothing = (self._tensors[0].new_empty(0),) * 2 if self._in_step else ()
        outgoing = self._pack(sent.keys) if sent else nothing
        incoming = self._inbox.room(step).unbind(0) if received else nothing
        # The communicator of the comm stream may number the ranks in another order.
        to, source = (self._ranks[(self._rank + turn) % self.world_size] for turn in (step, -step))
        return [
            dist.P2POp(operation, tensor, peer, self._group, tag)
            for operation, tensors, peer in ((dist.isend, outgoing, to), (dist.irecv, incoming, source))
            for tag, tensor in enumerate(tensors)
        ]

    def _finish(self, step: int) -> None:
        for work in self._pending.pop(step, []):
            try:
                work.wait()
            except RuntimeError as error:
                raise RuntimeError(
                    f"rank {self._rank} lost its exchange with rank {(self._rank - step) % self.world_size} (KV in) "
                    f"or rank {(self._rank + step) % self.world_size} (KV out) at ring step {step}: {error}"
                ) from error

    def _pack(self, keys: int) -> tuple[torch.Tensor, ...]:
        """The first `keys` local keys, and values, contiguous: copied only where they are not."""
        if keys not in self._packed:
            self._packed[keys] = tuple(contiguous_copy(x[:, :, :keys]) for x in self._tensors)
        return self._packed[keys]
