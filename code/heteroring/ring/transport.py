"""How keys and values reach the ranks whose queries must see them."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.distributed as dist

from heteroring.ring.partition import Partition
from heteroring.ring.schedule import visits

TRANSPORTS = ("p2p",)


def check_transport(name: str) -> None:
    """Raise ValueError unless `name` is "auto" or one of TRANSPORTS."""
    if name != "auto" and name not in TRANSPORTS:
        raise ValueError(f"transport {name!r} is unknown: choose auto or one of {', '.join(TRANSPORTS)}")


class PointToPoint:
    """KV shards by batched send and receive, each message exactly as long as the receiver needs.

    Step s of the rotation moves KV from rank r - s to rank r, straight from its owner, so that no rank relays
    tokens it does not use, and a causal receiver takes the prefix of keys that its queries can see. `start` posts
    a step's messages, `wait` returns its keys and values; posting step s + 1 before computing step s hides it.
    """

    def __init__(self, k: torch.Tensor, v: torch.Tensor, partition: Partition, causal: bool, group: dist.ProcessGroup):
        self._k, self._v, self._group = k, v, group
        self._rank = dist.get_rank(group)
        self.world_size = partition.world_size
        self._receives, self._sends = _messages(partition, self._rank, causal)
        self._packed: dict[int, torch.Tensor] = {}
        self._pending: dict[int, list[dist.Work]] = {}
        self._received: dict[int, torch.Tensor] = {}

    def start(self, step: int) -> None:
        """Post the messages of `step`, a ring step from 1 to world size - 1; nothing if it has none."""
        operations = []
        if step in self._sends:
            peer = (self._rank + step) % self.world_size
            operations.append(dist.P2POp(dist.isend, self._pack(self._sends[step]), group=self._group, group_peer=peer))
        if step in self._receives:
            peer = (self._rank - step) % self.world_size
            batch, heads, _, head_dim = self._k.shape
            buffer = self._k.new_empty((2, batch, heads, self._receives[step], head_dim))
            self._received[step] = buffer
            operations.append(dist.P2POp(dist.irecv, buffer, group=self._group, group_peer=peer))
        self._pending[step] = dist.batch_isend_irecv(operations) if operations else []

    def wait(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `step`, each [B, Hkv, keys, D] contiguous."""
        self._finish(step)
        keys, values = self._received.pop(step).unbind(0)
        return keys, values

    def close(self) -> None:
        """Wait for the messages still under way; the caller may then reuse k and v."""
        for step in sorted(self._pending):
            self._finish(step)

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


@lru_cache(maxsize=1024)
def _messages(partition: Partition, rank: int, causal: bool) -> tuple[dict[int, int], dict[int, int]]:
    """Keys to receive and keys to send, by ring step; a step without a message is absent."""
    receives = {visit.step: visit.keys for visit in visits(partition, rank, causal) if visit.step}
    sends = {
        visit.step: visit.keys
        for peer in range(partition.world_size)
        for visit in visits(partition, peer, causal)
        if visit.step and visit.kv_rank == rank
    }
    return receives, sends
