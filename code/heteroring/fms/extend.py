"""Extension of a cache: further tokens, such as the next turn of a conversation, run through the model behind it."""

from __future__ import annotations

import torch
from torch import nn

from heteroring.allocators.apportion import apportion
from heteroring.arguments import flag, whole_number
from heteroring.fms.cache import RingCache, capacities, make_room
from heteroring.fms.decode import check_cache
from heteroring.fms.prefill import check_chunk, run_chunks
from heteroring.fms.rebalance import check_rebalance, rebalancer_of
from heteroring.fms.tokens import checked_tokens, described, is_token_ids
from heteroring.fms.weights import device_of
from heteroring.planning.rebalance import Rebalancer
from heteroring.ring.consistency import Call, Fields
from heteroring.ring.partition import Partition
from heteroring.ring.validation import check_transport


@torch.no_grad()
def ring_extend(
    model: nn.Module,
    input_ids: torch.Tensor,
    cache: RingCache,
    partition: Partition | None = None,
    *,
    capacity: int = 0,
    all_logits: bool = False,
    chunk: int | None = None,
    rebalance: bool | Rebalancer = False,
    transport: str = "auto",
) -> torch.Tensor:
    """Run further tokens of each sequence through the model, behind those that `cache` holds.

    Cached KV stays on its rank; each rank computes its new tokens, and keeps their KV. Every rank of the cache's group
    must call. Where a rank's cache has too little room, it is moved to a larger one.

    Args:
        model: The language model that filled `cache`, the same on all ranks.
        input_ids: The new tokens [B, N], N of 1 or more, the same on every rank.
        cache: This rank's cache; it then holds N tokens more.
        partition: Which of the new tokens each rank computes and keeps; None stands for the shares and the layout of
            the prompt.
        capacity: New tokens that the cache has room for afterwards, over all ranks.
        all_logits: Whether to return the logits of all new tokens, and not only of the last.
        chunk: Most tokens that go through the model at a time, as for `ring_prefill`.
        rebalance: Whether to split each chunk by the speeds that the ranks showed in those before it, as for
            `ring_prefill`.
        transport: "p2p", "copy-engine" or "auto", as for `heteroring.ring_attention`.

    Returns:
        Logits [B, V] of the last token, or [B, N, V] with `all_logits`, the same on every rank.

    Raises:
        ValueError: On every rank, if the cache is of another model or another number of sequences, if all tokens plus
            `capacity` exceed the model's max_expected_seq_len, if the partition is not of N tokens; and if the ranks'
            caches, tokens or other arguments differ.
        RuntimeError: If a rank is lost.
    """
    call = Call("ring_extend", getattr(cache, "group", None), model)
    rebalancer: Rebalancer | None = None

    def describe() -> Fields:
        nonlocal partition, rebalancer
        check_cache(model, cache)
        check_transport(transport)
        check_rebalance(rebalance, partition, check_chunk(chunk), call.world_size)
        partition = _partition(model, input_ids, cache, partition, capacity)
        rebalancer = rebalancer_of(rebalance, partition, device_of(model))
        return (
            ("weights", cache.fingerprint),
            ("batch", cache.batch),
            ("tokens held", cache.held),
            ("capacities", cache.capacities),
            ("decode_speeds", cache.speeds),
            ("new tokens", input_ids.shape[1]),
            ("layout", partition.layout),
            ("block_lens", partition.block_lens),
            ("capacity", int(capacity)),
            ("all_logits", flag("all_logits", all_logits)),
            ("chunk", check_chunk(chunk)),
            ("rebalance", rebalancer and rebalancer.state),
            ("transport", transport),
            ("token ids", checked_tokens(input_ids, model.config.src_vocab_size)),
        )

    with call:
        call.agree(describe, every_call=True)
        assert partition is not None  # since `describe` was called
        held = tuple(old + new for old, new in zip(cache.held, partition.block_lens, strict=True))
        room = tuple(map(max, cache.capacities, capacities(held, cache.speeds, int(capacity))))
        call.agree(lambda: (("part", "cache"),), lambda: make_room(cache, room[cache.rank]))
        cache.capacities = room
        return run_chunks(
            model, input_ids, partition, cache, call, all_logits, transport, chunk, rebalancer, int(capacity)
        )


def _partition(
    model: nn.Module, input_ids: torch.Tensor, cache: RingCache, partition: Partition | None, capacity: int
) -> Partition:
    """The new tokens' partition. Raises ValueError if tokens, partition or capacity break a rule of `ring_extend`."""
    if not is_token_ids(input_ids) or input_ids.dim() != 2 or not input_ids.numel() or len(input_ids) != cache.batch:
        raise ValueError(
            f"input_ids is {described(input_ids)}: a cache of {cache.batch} sequences takes token ids "
            f"[{cache.batch}, N], as many of each"
        )
    new, longest = input_ids.shape[1], model.config.max_expected_seq_len
    capacity = whole_number("capacity", capacity, "there is room for 0 new tokens or more")
    if cache.seq_len + new + capacity > longest:
        raise ValueError(
            f"{cache.seq_len} tokens cached, {new} further ones and {capacity} new ones exceed the model's "
            f"max_expected_seq_len of {longest}"
        )
    if partition is None:
        return Partition(cache.partition.layout, apportion(cache.partition.block_lens, new))
    if not isinstance(partition, Partition):
        raise ValueError(f"the partition is {partition!r}: it must be a Partition, such as Partition.zigzag((20, 10))")
    if partition.world_size != len(cache.held) or partition.seq_len != new:
        raise ValueError(
            f"block_lens {partition.block_lens} are of {partition.seq_len} tokens on {partition.world_size} ranks: "
            f"there are {new} on {len(cache.held)}"
        )
    return partition
