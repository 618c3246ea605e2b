"""Exchange of partial results of decode in one hop: every rank writes its own into the memory of all others."""

from __future__ import annotations

import torch
import torch.distributed as dist

from heteroring.kernels import decode_split
from heteroring.ring.transport.peer_access import peers_can_be_accessed
from heteroring.ring.transport.symmetric_buffer import SymmetricMemory, buffer_of

_WORD_BYTES = 8
_TURNS = 2


class PartialsBuffer(SymmetricMemory):
    """Two buffers on every rank, each for the parts of up to `capacity` heads from every rank.

    The kernel `exchange_kernel` of heteroring.kernels.decode_kernel writes, awaits and merges them, without flags
    (docs/ring.md). Neither the host nor a stream waits, and no state of a call is kept on the host, so calls may be
    recorded in a CUDA graph and mixed with others. As with copy engines, there is no time-out for a lost peer: the
    kernel waits until the process is ended.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device, capacity: int) -> None:
        self.capacity = capacity
        room = _TURNS * dist.get_world_size(group) * capacity * decode_split.WORDS
        super().__init__(group, device, room * _WORD_BYTES)
        self._places = torch.tensor(self._addresses, dtype=torch.int64, device=device)
        self._calls = torch.zeros(capacity, dtype=torch.int32, device=device)

    def exchange(self, parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Merge the parts of all ranks.

        Args:
            parts: This rank's parts [S, B, Hq, D + 1].
            dtype: dtype of the result.

        Returns:
            The output [B, Hq, D] over the keys of all ranks.
        """
        current = torch.cuda.current_stream(parts.device)
        self.open(current)
        out = decode_split.exchange(parts, dtype, self._places, self._calls, self.rank)
        self.close(current)
        return out


def partials_buffer_of(group: dist.ProcessGroup, parts: torch.Tensor) -> PartialsBuffer | None:
    """A buffer for parts [S, B, Hq, D + 1] like these; None where ranks cannot reach each other or kernels differ.

    All ranks of `group` make the first call together.
    """
    _, batch, heads, width = parts.shape
    if parts.dtype != torch.float32 or not parts.is_cuda or width - 1 > decode_split.MOST_HEAD_DIM:
        return None
    if not peers_can_be_accessed(group, parts.device):
        return None
    return buffer_of(PartialsBuffer, group, parts.device, batch * heads)
