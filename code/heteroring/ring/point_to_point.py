"""KV by batched send and receive of torch.distributed: gloo on the CPU, NCCL on CUDA."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist

from heteroring.ring.lane import Lane, lane_of
from heteroring.ring.messages import Inbox, messages
from heteroring.ring.partition import Partition


class PointToPoint:
    """Every message exactly as long as its receiver needs.

    On CUDA, packing and messages run on a high-priority stream and a communicator of their own, beside the compute
    of the step before; and every rank posts one send and one receive in every step, empty ones among them, because
    lists that differ between ranks have been seen to hang NCCL. On the CPU an empty message would only cost time.
    """

    def __init__(
        self, k: torch.Tensor, v: torch.Tensor, partition: Partition, causal: bool, group: dist.ProcessGroup
    ) -> None:
        self._k, self._v = k, v
        self._rank, self.world_size = dist.get_rank(group), partition.world_size
        self._messages = messages(partition, self._rank, causal)
        self._inbox = Inbox(k, self._messages)
        self._lane: Lane | None = lane_of(group, k.device) if k.is_cuda else None
        self._group = self._lane.communicator() if self._lane else group
        self._packed: dict[int, torch.Tensor] = {}
        self._pending: dict[int, list[dist.Work]] = {}

    def start(self, step: int) -> None:
        """Post the messages of `step`, a ring step from 1 to world size - 1; nothing if it has none."""
        with self._side():
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

    def _side(self) -> AbstractContextManager:
        return self._lane.after_current() if self._lane else nullcontext()

    def _operations(self, step: int) -> list[dist.P2POp]:
        sends, receives = self._messages.sends, self._messages.receives
        operations = []
        if step in sends or self._lane:
            message = self._pack(sends[step]) if step in sends else self._k.new_empty(0)
            peer = (self._rank + step) % self.world_size
            operations.append(dist.P2POp(dist.isend, message, group=self._group, group_peer=peer))
        if step in receives or self._lane:
            room = self._inbox.room(step) if step in receives else self._k.new_empty(0)
            peer = (self._rank - step) % self.world_size
            operations.append(dist.P2POp(dist.irecv, room, group=self._group, group_peer=peer))
        return operations

    def _finish(self, step: int) -> None:
        for work in self._pending.pop(step, []):
            try:
                work.wait()
            except RuntimeError as error:
                raise RuntimeError(
                    f"rank {self._rank} lost its exchange with rank {(self._rank - step) % self.world_size} (KV in) "
                    f"or rank {(self._rank + step) % self.world_size} (KV out) at ring step {step}: {error}"
                ) from error

    def _pack(self, keys: int) -> torch.Tensor:
        """The first `keys` local keys and values in one contiguous message [2, B, Hkv, keys, D]."""
        if keys not in self._packed:
            self._packed[keys] = torch.stack((self._k[:, :, :keys], self._v[:, :, :keys]))
        return self._packed[keys]
