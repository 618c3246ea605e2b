"""Ring attention recorded as a CUDA graph, for prompts so short that launching the work takes longer than the work."""

from __future__ import annotations

from typing import Any

import torch

from heteroring.ring.attention import ring_attention
from heteroring.ring.partition import Partition
from heteroring.ring.validation import check_capturable


class CapturedRing:
    """`ring_attention` of fixed tensors, which the host launches in one piece.

    Write new values into q, k and v, then call the object. All ranks of the group create it together and call it
    equally often, on the stream of their other calls over the group. Creating it runs the attention once.

    Args:
        q: This rank's queries [B, Hq, n_r, D], on CUDA.
        k: This rank's keys [B, Hkv, n_r, D].
        v: This rank's values [B, Hkv, n_r, D].
        partition: Which tokens each rank holds.
        *args: Further arguments of `ring_attention`.
        **kwargs: Further keywords of `ring_attention`.

    Returns:
        When called, (out, lse) as `ring_attention` returns them, in the same two tensors each time.

    Raises:
        ValueError: If q is not on CUDA, and as `ring_attention` does.
        RuntimeError: As `ring_attention` does.
    """

    def __init__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, partition: Partition, *args: Any, **kwargs: Any
    ) -> None:
        check_capturable(q)
        # Objects that are created once, such as a communicator, cannot be created while work is recorded.
        ring_attention(q, k, v, partition, *args, **kwargs)
        torch.cuda.synchronize(q.device)
        self._inputs = q, k, v  # the graph reads their memory, so they must outlive it
        self._graph = torch.cuda.CUDAGraph()
        # Only this thread is recorded: others, such as NCCL's, may make calls that cannot be recorded.
        with torch.cuda.device(q.device), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._results = ring_attention(q, k, v, partition, *args, **kwargs)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.cuda.device(self._inputs[0].device):
            self._graph.replay()
        return self._results
