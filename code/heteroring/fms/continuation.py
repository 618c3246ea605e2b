"""The tokens that follow a prompt: steps of decode on state that lives on the device, replayed as a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from heteroring.fms.decode import decode_forward, ring_decode_step
from heteroring.fms.prefill import Prefill
from heteroring.ring.process_group import members

Choice = Callable[[torch.Tensor], torch.Tensor]


class Continuation:
    """New tokens [B, up to most] behind a prefill, each chosen on rank 0 and broadcast to the others.

    The first token is there at once. `advance` makes the others: eagerly, or, after `capture`, by replaying one step.

    Args:
        model: The language model of the prefill.
        prefill: The result of `ring_prefill`, with room for all new tokens but the last.
        most: Most new tokens.
        choose: Token ids [B, 1] from logits [B, V]; it must not make the host wait.
        eos_token_id: The token that ends a sequence; None for none.
        generator: The generator that `choose` draws from; None for PyTorch's global one, or for none.
    """

    def __init__(
        self,
        model: nn.Module,
        prefill: Prefill,
        most: int,
        choose: Choice,
        eos_token_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self._model, self._cache, self._choose = model, prefill.cache, choose
        self._eos, self._generator = eos_token_id, generator
        self._group, _, self._world_size = members(prefill.cache.group)
        self._graph: torch.cuda.CUDAGraph | None = None
        batch, device = prefill.cache.batch, prefill.logits.device
        self._first = prefill.cache.steps.clone()
        self._new = torch.empty(batch, 1, dtype=torch.int64, device=device)
        self._ids = torch.empty(batch, most, dtype=torch.int64, device=device)
        self._ended = torch.zeros(batch, 1, dtype=torch.bool, device=device)
        self.tokens = 0
        self._take(prefill.logits)
        self.tokens = 1

    @property
    def ids(self) -> torch.Tensor:
        """[B, tokens], or fewer: up to the first with which every sequence has produced `eos_token_id`."""
        ids = self._ids[:, : self.tokens]
        if self._eos is None:
            return ids
        unended = (ids == self._eos).cumsum(1) == 0
        return ids[:, : int(unended.sum(1).max()) + 1]

    @property
    def ended(self) -> bool:
        """Whether every sequence has produced `eos_token_id`. The host waits for the device, unless there is none."""
        return self._eos is not None and bool(self._ended.all())

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return self._graph is not None

    def advance(self) -> None:
        """Make one more token of each sequence."""
        if self._graph is None:
            self._take(ring_decode_step(self._model, self._new, self._cache))
        else:
            self._graph.replay()
            self._cache.count()
        self.tokens += 1

    def capture(self) -> None:
        """Record a step as a CUDA graph, which `advance` then replays, if that is possible on all ranks; else warn.

        All ranks call, after an eager step, because objects that are created once, such as a communicator, cannot be
        created while work is recorded. Off CUDA, nothing is done.
        """
        device = self._new.device
        if device.type != "cuda":
            return
        graph, reason = torch.cuda.CUDAGraph(), None
        if self._generator is not None:
            graph.register_generator_state(self._generator)
        try:
            # Only this thread is recorded: others, such as NCCL's, may make calls that cannot be recorded.
            with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._take(decode_forward(self._model, self._new, self._cache))
        except Exception as error:  # of any type, from any layer: steps then stay eager
            reason = str(error).partition("\n")[0] or type(error).__name__
        if self._on_all_ranks(reason is None):
            self._graph = graph
        else:
            reason = reason or "another rank cannot record it"
            warnings.warn(f"a step of decode cannot be captured, so tokens are made one by one: {reason}", stacklevel=2)

    def _take(self, logits: torch.Tensor) -> None:
        """Choose the next token from its logits [B, V], on the device alone."""
        new = self._choose(logits)
        if self._world_size > 1:
            dist.broadcast(new, group=self._group, group_src=0)
        self._new.copy_(new)
        self._ids.index_copy_(1, self._cache.steps - self._first, new)
        self._ended |= new == (-1 if self._eos is None else self._eos)

    def _on_all_ranks(self, mine: bool) -> bool:
        answer = torch.tensor(int(mine), device=self._new.device)
        if self._world_size > 1:
            dist.all_reduce(answer, dist.ReduceOp.MIN, group=self._group)
        return bool(answer)
