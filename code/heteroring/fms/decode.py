"""A step of decode: one new token through a language model whose KV cache is sharded over ranks."""

from __future__ import annotations

import torch
from torch import nn

from heteroring.fms.attention import OP, DecodeStep, Ring
from heteroring.fms.cache import RingCache
from heteroring.fms.models import check_model
from heteroring.fms.tokens import checked_tokens, described, is_token_ids
from heteroring.fms.weights import device_of, fingerprint
from heteroring.ring.consistency import Call, Fields


def ring_decode_step(model: nn.Module, token_ids: torch.Tensor, cache: RingCache) -> torch.Tensor:
    """Run one new token of each sequence through the model, and return the logits of the token after it.

    Every rank runs all layers on the new token; only attention is distributed, over the KV that each rank holds. The
    token's own KV is appended in place on the rank that heteroring.fms.cache.next_owner names, which is the same for
    all layers and sequences. Every rank of the cache's group must call.

    On CUDA, where comparing makes the host wait, the ranks compare the models and partitions of their caches in the
    first call only, and never the tokens.

    Args:
        model: The language model that filled `cache`, the same on all ranks.
        token_ids: The new token's id of each sequence, [B] or [B, 1], the same on all ranks.
        cache: This rank's cache from `ring_prefill`; it then holds one token more.

    Returns:
        Logits [B, V], the same on every rank.

    Raises:
        ValueError: On every rank, if the cache is full, or of another model or another number of sequences, or if the
            ranks' caches or tokens differ.
        RuntimeError: If a rank is lost.
    """
    call = Call("ring_decode_step", getattr(cache, "group", None), model)

    def describe() -> Fields:
        _check(model, token_ids, cache)
        fields: Fields = (
            ("weights", cache.fingerprint),
            ("batch", cache.batch),
            ("layout", cache.partition.layout),
            ("block_lens", cache.partition.block_lens),
            ("capacities", cache.capacities),
            ("decode_speeds", cache.speeds),
        )
        if device_of(model).type == "cpu":
            tokens = checked_tokens(token_ids, model.config.src_vocab_size)
            fields += (("tokens held", cache.held), ("token ids", tokens))
        return fields

    with call:
        call.agree(describe)
        logits = call.agree(lambda: (("part", "forward"),), lambda: decode_forward(model, token_ids, cache))
        cache.count()
        return logits


@torch.no_grad()
def decode_forward(model: nn.Module, token_ids: torch.Tensor, cache: RingCache) -> torch.Tensor:
    """Run one step of decode; its KV is cached, and counted on the device.

    Values that differ from step to step are read on the device, so a CUDA graph may record the call and be replayed.

    Args:
        model: The language model that filled the cache.
        token_ids: One new token of each sequence, [B] or [B, 1].
        cache: This rank's cache.

    Returns:
        Logits [B, V].
    """
    slot, cached, position = cache.turns.index_select(0, cache.steps).split(1, dim=1)
    logits, _ = model(
        token_ids.reshape(-1, 1).to(device_of(model)),
        position_ids=position,
        past_key_value_states=cache.layers,
        use_cache=True,
        attn_name=OP,
        ring=Ring(cache.partition, cache.group, cache.backend, step=DecodeStep(slot[0], cached[0])),
    )
    cache.steps += 1
    return logits[:, -1]


def check_cache(model: nn.Module, cache: RingCache) -> None:
    """Raise ValueError unless `model`, in its present state, is one that the ring runs and that filled `cache`."""
    check_model(model)
    if not isinstance(cache, RingCache):
        raise ValueError(f"the cache is of type {type(cache).__name__}: it must be one that ring_prefill returned")
    if fingerprint(model) != cache.fingerprint:
        raise ValueError("the cache was filled by another model, or by this one with other weights")


def _check(model: nn.Module, token_ids: torch.Tensor, cache: RingCache) -> None:
    check_cache(model, cache)
    if not is_token_ids(token_ids) or token_ids.shape not in ((cache.batch,), (cache.batch, 1)):
        raise ValueError(
            f"token_ids is {described(token_ids)}: a cache of {cache.batch} sequences takes the id of a token of each"
        )
    if cache.room < 1:
        raise ValueError(
            f"the cache is full, with {cache.seq_len} tokens: call ring_prefill with the capacity for those to follow"
        )
