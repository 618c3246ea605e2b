"""The attention op "ring", which FMS's MultiHeadAttention calls in place of PyTorch's attention."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from fms.modules.attention import get_attention_type, register_attention_op

from heteroring.fms.rebalance import LayerTimes
from heteroring.kernels.backend import Backend
from heteroring.ring.attention import ring_attention
from heteroring.ring.decode import ring_decode
from heteroring.ring.partition import Partition
from heteroring.ring.prefix import Prefix
from heteroring.ring.process_group import members

OP = "ring"


@dataclass(frozen=True)
class DecodeStep:
    """A step of decode on this rank, known to the device alone: a step recorded in a CUDA graph serves every token.

    Args:
        slot: int64 [1]: where in this rank's cache the new token's KV is written, behind the tokens that it holds.
        cached: int64 [1]: tokens of the cache that the new token attends to: those before the slot, and its own KV on
            the one rank that keeps it.
    """

    slot: torch.Tensor
    cached: torch.Tensor


@dataclass(frozen=True)
class Ring:
    """How the op "ring" attends: the keyword of a call of a model or layer, `attn_name="ring", ring=Ring(...)`.

    Without `step` the call is a prefill over `partition`: hidden states are this rank's shard [B, n_r, E], position
    ids the global ones (`partition.positions(rank)`, behind all earlier tokens). With it, the call is a step of
    decode: hidden states are those of one new token [B, 1, E], the same on every rank, and the cache that is passed
    along is this rank's.

    Args:
        partition: Which tokens of the prompt, or of its chunk, each rank holds.
        group: The process group; None stands for all processes.
        block: Name of a backend, "auto" for the fastest one, or a `heteroring.kernels.backend.Backend`.
        transport: "p2p", "copy-engine" or "auto", as for `heteroring.ring_attention`.
        step: The step of decode; None for a prefill.
        prefix_lens: Earlier tokens in the cache of each rank, which a prefill attends to, too; () for none.
        times: Measures the layers of a prefill; None to measure nothing.
    """

    partition: Partition
    group: dist.ProcessGroup | None = None
    block: str | Backend = "auto"
    transport: str = "auto"
    step: DecodeStep | None = None
    prefix_lens: tuple[int, ...] = ()
    times: LayerTimes | None = None

    @property
    def held(self) -> int:
        """Tokens in this rank's cache before a prefill."""
        return self.prefix_lens[members(self.group)[1]] if self.prefix_lens else 0


def register() -> None:
    """Register the op "ring" with FMS, unless it is registered already."""
    try:
        get_attention_type(attn_name=OP)
    except KeyError:
        # TorchDynamo must not trace waits for other ranks, nor values that differ from step to step; a compiled model
        # calls these functions uncompiled.
        untraced = torch.compiler.disable
        register_attention_op(
            OP,
            untraced(_store),
            untraced(_prefill),
            is_prefill_op=untraced(_is_prefill),
            compute_decode_op=untraced(_decode),
            validate_attn_kwargs_op=untraced(_validate),
        )


def _is_prefill(**attn_kwargs: Any) -> bool:
    return _checked(attn_kwargs).step is None


def _validate(**attn_kwargs: Any) -> None:
    _checked(attn_kwargs)


def _store(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_cache: torch.Tensor | None,
    value_cache: torch.Tensor | None,
    **attn_kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write keys and values [B, n, Hkv, D] into this rank's cache [B, Hkv, capacity, D], after the tokens held.

    Returns the keys and values to attend to and the cache: after a prefill, without a cache (None, or one without
    elements) keys and values become the cache; in a step of decode all of the cache is returned, [B, capacity, Hkv, D].
    """
    ring, new = _checked(attn_kwargs), keys.shape[1]
    if ring.step is not None:
        if key_cache is None or value_cache is None or not key_cache.numel():
            raise ValueError("the attention op 'ring' was told to decode, and given no cache")
        key_cache.index_copy_(2, ring.step.slot, keys.transpose(1, 2))
        value_cache.index_copy_(2, ring.step.slot, values.transpose(1, 2))
        return key_cache.transpose(1, 2), value_cache.transpose(1, 2), key_cache, value_cache
    held = ring.held
    if key_cache is None or value_cache is None or not key_cache.numel():
        if held:
            raise ValueError(f"the attention op 'ring' was told that {held} tokens are cached, and given no cache")
        key_cache, value_cache = keys.transpose(1, 2), values.transpose(1, 2)
    else:
        if held + new > key_cache.shape[2]:
            raise ValueError(f"the cache has room for {key_cache.shape[2]} tokens, {held} are held and {new} are new")
        key_cache[:, :, held : held + new].copy_(keys.transpose(1, 2))
        value_cache[:, :, held : held + new].copy_(values.transpose(1, 2))
    used = slice(0, held + new)
    return key_cache[:, :, used].transpose(1, 2), value_cache[:, :, used].transpose(1, 2), key_cache, value_cache


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    nheads: int,
    kvheads: int,
    p_dropout: float,
    scale_factor: float | None,
    **attn_kwargs: Any,
) -> torch.Tensor:
    """Attention of this rank's query [B, n_r, Hq, D] to the keys and values [B, m_r + n_r, Hkv, D] of all ranks."""
    ring = _checked(attn_kwargs, p_dropout)
    if ring.held + query.shape[1] != keys.shape[1]:
        behind = f" behind {ring.held} earlier tokens" if ring.held else ""
        raise ValueError(
            f"the attention op 'ring' got {query.shape[1]} queries and {keys.shape[1]} keys on this rank{behind}: it "
            "computes causal self-attention, not cross-attention"
        )
    q, k, v = (x.transpose(1, 2) for x in (query, keys, values))
    return prefilled(q, k, v, ring, scale_factor).transpose(1, 2).contiguous()


def prefilled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ring: Ring, scale: float | None) -> torch.Tensor:
    """Attention of a prefill, over the ring.

    Args:
        q: This rank's queries [B, Hq, n_r, D].
        k: Keys [B, Hkv, m_r + n_r, D], beginning with the earlier tokens that this rank holds.
        v: The values of the same tokens.
        ring: How to attend.
        scale: Factor on the scores; None stands for 1/sqrt(D).

    Returns:
        out [B, Hq, n_r, D].
    """
    held, prefix = ring.held, None
    if ring.prefix_lens:
        prefix = Prefix(k[:, :, :held], v[:, :, :held], ring.prefix_lens)
        k, v = k[:, :, held:], v[:, :, held:]
    with nullcontext(ring.block) if ring.times is None else ring.times.attention() as backend:
        options = {"block": backend, "transport": ring.transport}
        return ring_attention(q, k, v, ring.partition, ring.group, True, scale, prefix, **options)[0]


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    nheads: int,
    kvheads: int,
    p_dropout: float,
    scale_factor: float | None,
    **attn_kwargs: Any,
) -> torch.Tensor:
    """Attention of the new token's query [B, 1, Hq, D] to the caches [B, capacity, Hkv, D] of all ranks."""
    ring = _checked(attn_kwargs, p_dropout)
    q, k, v = (x.transpose(1, 2) for x in (query, keys, values))
    out = ring_decode(q, k, v, ring.group, scale_factor, block=ring.block, cached=ring.step.cached)
    return out.transpose(1, 2)


def _checked(attn_kwargs: dict[str, Any], p_dropout: float = 0.0) -> Ring:
    """The Ring among the keywords of a call; ValueError for keywords with which the ring would not be exact."""
    ring = attn_kwargs.get("ring")
    if not isinstance(ring, Ring):
        raise ValueError("the attention op 'ring' needs ring=heteroring.fms.Ring(...), as ring_prefill passes it")
    if attn_kwargs.get("mask") is not None:
        raise ValueError(
            "the attention op 'ring' takes no mask: which keys a query sees follows from the partition. Prompts of "
            "different lengths (a ragged batch) must be prefilled one by one"
        )
    if attn_kwargs.get("is_causal_mask") is False:
        raise ValueError("the attention op 'ring' is causal: is_causal_mask=False is not supported")
    if attn_kwargs.get("sinks") is not None:
        raise ValueError("the attention op 'ring' has no attention sinks: they would enter every rank's softmax")
    if attn_kwargs.get("sliding_window"):
        raise ValueError(
            f"the attention op 'ring' has no sliding window, sliding_window is {attn_kwargs['sliding_window']}: "
            "every query attends to all tokens before it"
        )
    if p_dropout:
        raise ValueError(
            f"the attention op 'ring' drops nothing out, the layer's probability is {p_dropout}: call model.eval()"
        )
    return ring
