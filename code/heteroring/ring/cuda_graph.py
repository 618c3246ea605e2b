"""A call of ring attention recorded as a CUDA graph, for prompts so short that asking for the work takes longest."""

from __future__ import annotations

from typing import Any

import torch

from heteroring.ring.attention import ring_attention
from heteroring.ring.partition import Partition


class CapturedRing:
    """`ring_attention` of fixed tensors, launched by the host in one piece.

    Write new values into q, k and v, call the object, and find the results in the (out, lse) that it returns, the
    same tensors each time. Arguments and errors are those of `ring_attention`, on CUDA only. All ranks of the group
    make it together and call it equally often, on the stream of their other calls over the group; making it runs the
    attention once.
    """

    def __init__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, partition: Partition, *args: Any, **kwargs: Any
    ) -> None:
        if not q.is_cuda:
            raise ValueError(f"only work on CUDA can be captured, q is on {q.device}")
        # What is made once for a partition, a communicator for one, cannot be made while work is recorded.
        ring_attention(q, k, v, partition, *args, **kwargs)
        torch.cuda.synchronize(q.device)
        self._inputs = q, k, v  # the graph reads their memory, whoever else still holds them
        self._graph = torch.cuda.CUDAGraph()
        # Of this thread only: others, NCCL's among them, may go on asking for what cannot be recorded.
        with torch.cuda.device(q.device), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._results = ring_attention(q, k, v, partition, *args, **kwargs)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.cuda.device(self._inputs[0].device):
            self._graph.replay()
        return self._results
