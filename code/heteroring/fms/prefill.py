"""Prefill: a whole prompt through a language model, each rank computing its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from heteroring.allocators.apportion import chunks_of
from heteroring.arguments import flag, whole_number
from heteroring.fms.attention import OP, Ring, prefilled
from heteroring.fms.cache import RingCache, check_speeds, empty_cache
from heteroring.fms.logits import gather_all, share_last
from heteroring.fms.models import attention_layers, check_model, strategy_of
from heteroring.fms.rebalance import (
    SPARE,
    LayerTimes,
    check_rebalance,
    counted_layers,
    grow,
    rebalancer_of,
    split_anew,
)
from heteroring.fms.tokens import check_not_padded, checked_tokens, described, is_token_ids
from heteroring.fms.weights import configuration, device_of, dtype_of, fingerprint
from heteroring.kernels.backend import Backend, check_backend
from heteroring.planning.rebalance import Rebalancer
from heteroring.ring.consistency import Call, Fields
from heteroring.ring.partition import Partition
from heteroring.ring.shard import shard
from heteroring.ring.validation import check_transport


class Prefill(NamedTuple):
    """The result of `ring_prefill`: logits, [B, V] or [B, N, V], the same on every rank; this rank's cache."""

    logits: torch.Tensor
    cache: RingCache


@torch.no_grad()
def ring_prefill(
    model: nn.Module,
    input_ids: torch.Tensor,
    partition: Partition | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    capacity: int = 0,
    all_logits: bool = False,
    decode_speeds: Sequence[float] | None = None,
    chunk: int | None = None,
    rebalance: bool | Rebalancer = False,
    block: str | Backend = "auto",
    transport: str = "auto",
) -> Prefill:
    """Run prompts through an FMS model whose weights every rank holds, each rank computing its tokens of `partition`.

    Every rank of the group must call. There is no padding: all of input_ids is attended to, so prompts of different
    lengths must be prefilled one by one. A batch is refused if a row begins or ends with more pad ids than another (the
    configuration's `pad_id`, or 0 where it has none). Other padding cannot be detected: rows padded alike, a single
    padded prompt, or another token used for padding.

    A model may be compiled in place by `model.compile()`, which leaves the ring's attention uncompiled. The first
    calls, and the first of each further shape, then take up to a minute longer.

    Args:
        model: A language model of one of heteroring.fms.ARCHITECTURES, the same on all ranks.
        input_ids: The whole prompts [B, N], all of one length, the same on every rank.
        partition: Which tokens each rank holds; None stands for that of the model's RingAttentionStrategy.
        group: The process group; None stands for that of the model's RingAttentionStrategy.
        capacity: New tokens that the cache has room for, over all ranks.
        all_logits: Whether to return the logits of all tokens, and not only of the last.
        decode_speeds: Relative speeds of decode per rank, by which the room for new tokens is spread
            (heteroring.fms.cache.next_owner); None for equal speeds.
        chunk: Most tokens, over all ranks, that go through the model at a time, which bounds the memory of its
            activations; the logits are the same. Each chunk is laid out over the ranks as the prompt would be, in the
            same shares. None stands for the whole prompt.
        rebalance: Whether to split each chunk by the speeds that the ranks showed in those before it, beginning with
            the shares of `partition`, in zigzag. KV that is cached stays where it is. Or, in place of a partition, a
            `heteroring.Rebalancer`, which keeps its estimates from one call to the next.
        block: Name of a backend, "auto" for the fastest one, or a `heteroring.kernels.backend.Backend`.
        transport: "p2p", "copy-engine" or "auto", as for `heteroring.ring_attention`.

    Returns:
        (logits, cache): logits [B, V] of the last token on every rank, or [B, N, V] with `all_logits`, and this rank's
        RingCache. Without `all_logits` only the owner of the last token computes logits, and nothing else is gathered.

    Raises:
        ValueError: On every rank, if the prompt is shorter than the number of ranks, longer together with `capacity`
            than the model's max_expected_seq_len, not of the partition's length, or padded; if chunks cannot be
            rebalanced; if the ranks' models, prompts or other arguments differ; and if the model is not one of
            heteroring.fms.ARCHITECTURES.
        RuntimeError: If a rank is lost.
    """
    strategy = strategy_of(model)
    call = Call("ring_prefill", group if group is not None else strategy.group, model)
    chosen: Partition
    rebalancer: Rebalancer | None = None

    def describe() -> Fields:
        nonlocal chosen, rebalancer
        check_model(model)
        check_transport(transport)
        check_backend(block, device_of(model).type, dtype_of(model))
        check_rebalance(rebalance, partition, check_chunk(chunk), call.world_size)
        chosen = _check_prompt(model, input_ids, partition, call.world_size, capacity, rebalance)
        rebalancer = rebalancer_of(rebalance, chosen, device_of(model))
        return (
            ("architecture", type(model).__name__),
            ("dtype", str(dtype_of(model))),
            *configuration(model),
            ("weights", fingerprint(model)),
            ("batch", input_ids.shape[0]),
            ("prompt length", input_ids.shape[1]),
            ("layout", chosen.layout),
            ("block_lens", chosen.block_lens),
            ("capacity", int(capacity)),
            ("all_logits", flag("all_logits", all_logits)),
            ("decode_speeds", check_speeds(decode_speeds, call.world_size)),
            ("chunk", check_chunk(chunk)),
            ("rebalance", rebalancer and rebalancer.state),
            ("transport", transport),
            ("token ids", checked_tokens(input_ids, model.config.src_vocab_size)),
        )

    def empty() -> RingCache:
        roomy = chosen
        if rebalancer is not None:
            roomy = Partition(chosen.layout, tuple(length + length // SPARE for length in chosen.block_lens))
        return empty_cache(model, roomy, input_ids.shape[0], int(capacity), decode_speeds, call.group, block)

    with call:
        call.agree(describe, every_call=True)
        cache = call.agree(lambda: (("part", "cache"),), empty)
        logits = run_chunks(model, input_ids, chosen, cache, call, all_logits, transport, chunk, rebalancer, capacity)
        cache.partition = Partition(chosen.layout, cache.held)
        return Prefill(logits, cache)


def run_chunks(
    model: nn.Module,
    input_ids: torch.Tensor,
    partition: Partition,
    cache: RingCache,
    call: Call,
    all_logits: bool,
    transport: str,
    chunk: int | None,
    rebalancer: Rebalancer | None,
    new_tokens: int,
) -> torch.Tensor:
    """Run tokens through the model in chunks, behind those of a cache, which then holds these, too.

    An error leaves the finished chunks cached.

    Args:
        model: The language model.
        input_ids: The new tokens [B, N], the same on every rank.
        partition: Which of them each rank holds; with a `rebalancer`, only its length counts.
        cache: This rank's cache.
        call: The call, within its context.
        all_logits: Whether to return the logits of all tokens, and not only of the last.
        transport: "p2p", "copy-engine" or "auto".
        chunk: Most tokens of a chunk, over all ranks; None for all.
        rebalancer: Splits the chunks, and observes them; None to split them by `partition`.
        new_tokens: Tokens of decode that the cache of a rebalanced prefill gets room for.

    Returns:
        Logits on every rank: [B, V] of the last token, or [B, N, V].
    """
    cache.full = 0  # no step of decode is allowed after an error
    device, done, found = device_of(model), 0, []
    # All at once, since a copy to the device makes the host wait for the chunks queued before.
    ids = input_ids.to(device)
    positions = torch.arange(cache.seq_len, cache.seq_len + partition.seq_len, device=device)
    layers = counted_layers(len(cache.layers), device)
    chunks = chunks_of(partition, chunk) if rebalancer is None else split_anew(rebalancer, partition.seq_len, chunk)
    like = torch.empty(len(input_ids), 0, model.config.src_vocab_size, dtype=dtype_of(model), device=device)
    for part in chunks:
        left = partition.seq_len - done
        last = _owner_of_last(part)
        head = all_logits or (part.seq_len == left and call.rank == last)
        if rebalancer is not None:
            grow(cache, part, left, new_tokens, call)
        times = None if rebalancer is None else LayerTimes(cache.backend, layers, device)

        def forward(
            part: Partition = part, head: bool = head, done: int = done, times: LayerTimes | None = times
        ) -> torch.Tensor | None:
            prefix_lens = cache.held if any(cache.held) else ()
            ring = Ring(part, call.group, cache.backend, transport, prefix_lens=prefix_lens, times=times)
            tokens, places = (shard(x[..., done : done + part.seq_len], part, call.rank, -1) for x in (ids, positions))
            return _forward(model, tokens, places, ring, cache, head, all_tokens=all_logits)

        logits = call.agree(lambda: (("part", "forward"),), forward)
        cache.held = tuple(map(add, cache.held, part.block_lens))
        done += part.seq_len
        if rebalancer is not None and times is not None:
            rebalancer.observe(part, times.of_all_ranks(call.group))
        if all_logits:
            found.append(logits if call.world_size == 1 else gather_all(logits, part, like, call.group))
    if all_logits:
        logits = torch.cat(found, 1)
    else:
        logits = logits[:, -1] if call.world_size == 1 else share_last(logits, last, like, call.group)
    cache.schedule_turns()  # when all else is queued, since the host waits for the copy to the device
    return logits


def _check_prompt(
    model: nn.Module,
    input_ids: torch.Tensor,
    partition: Partition | None,
    world_size: int,
    capacity: int,
    rebalance: bool | Rebalancer,
) -> Partition:
    """The prompt's partition. Raises ValueError if prompt, partition or capacity break a rule of `ring_prefill`."""
    if not is_token_ids(input_ids) or input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(
            f"input_ids is {described(input_ids)}: it must be a tensor of token ids [B, N], all of one length"
        )
    check_not_padded(input_ids, model.config)
    seq_len, longest = input_ids.shape[1], model.config.max_expected_seq_len
    if seq_len < world_size:
        raise ValueError(f"the prompt has {seq_len} tokens, fewer than the {world_size} ranks")
    capacity = whole_number("capacity", capacity, "there is room for 0 new tokens or more")
    if seq_len + capacity > longest:
        raise ValueError(
            f"a prompt of {seq_len} tokens and {capacity} new ones exceed the model's max_expected_seq_len of {longest}"
        )
    if not isinstance(partition, Partition | None):
        raise ValueError(
            f"the partition is {partition!r}: it must be a Partition, such as Partition.zigzag((200, 100))"
        )
    if isinstance(rebalance, Rebalancer):
        chosen = rebalance.partition(seq_len)
    else:
        chosen = partition or strategy_of(model).partition(seq_len, world_size)
    if chosen.world_size != world_size:
        raise ValueError(
            f"the partition has {chosen.world_size} ranks ({chosen.block_lens}), the group has {world_size}"
        )
    if chosen.seq_len != seq_len:
        raise ValueError(f"block_lens {chosen.block_lens} sum to {chosen.seq_len}, but the prompt has {seq_len} tokens")
    return chosen


def check_chunk(chunk: int | None) -> int | None:
    """`chunk` as an int, or None. Raises ValueError if it is less than 1 token."""
    return None if chunk is None else whole_number("chunk", chunk, "a chunk has 1 token or more", least=1)


def _owner_of_last(partition: Partition) -> int:
    """The rank that holds the prompt's last token."""
    return next(
        rank
        for rank in range(partition.world_size)
        if any(start < stop == partition.seq_len for start, stop in partition.spans(rank))
    )


def _forward(
    model: nn.Module,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    ring: Ring,
    cache: RingCache,
    head: bool,
    all_tokens: bool,
) -> torch.Tensor | None:
    """Run the model on this rank's `tokens` [B, n_r], at `positions` [n_r]; both are on its device.

    If `head`, returns logits [B, n_r, V], or [B, 1, V] of the last without `all_tokens`.

    FMS cannot run on zero tokens, so a rank without tokens only takes part in each layer's ring attention.
    """
    if not tokens.shape[1]:
        for layer, (keys, values) in zip(attention_layers(model), cache.layers, strict=True):
            queries = keys.new_empty(len(tokens), layer.nheads, 0, layer.emb_kq_per_head)
            prefilled(queries, keys[:, :, : ring.held], values[:, :, : ring.held], ring, layer.scale_factor)
        return None
    inputs = {
        "position_ids": positions[None],
        "past_key_value_states": cache.layers,
        "use_cache": True,
        "attn_name": OP,
        "ring": ring,
    }
    if not head:
        model.base_model(tokens, **inputs)
        return None
    return model(tokens, last_n_tokens=0 if all_tokens else 1, **inputs)[0]
