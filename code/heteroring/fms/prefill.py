"""Prefill: a whole prompt through a language model, each rank computing its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from heteroring.allocators.apportion import chunks_of
from heteroring.fms.attention import OP, Ring, prefilled
from heteroring.fms.cache import RingCache, check_speeds, empty_cache
from heteroring.fms.logits import gather_all, share_last
from heteroring.fms.models import attention_layers, check_model, strategy_of
from heteroring.fms.tokens import check_not_padded, checked_tokens, described, is_token_ids
from heteroring.fms.weights import configuration, device_of, dtype_of, fingerprint
from heteroring.kernels.backend import Backend, check_backend
from heteroring.ring.arguments import flag, whole_number
from heteroring.ring.consistency import Call, Fields
from heteroring.ring.partition import Partition
from heteroring.ring.shard import shard
from heteroring.ring.transport.transport import check_transport


class Prefill(NamedTuple):
    """The result of `ring_prefill`: logits, the same on every rank, and this rank's part of the KV cache."""

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
    block: str | Backend = "auto",
    transport: str = "auto",
) -> Prefill:
    """Run prompts through an FMS model whose weights every rank holds, each rank computing its tokens of `partition`.

    Every rank of the group must call. There is no padding: all of input_ids is attended to, so prompts of different
    lengths must be prefilled one by one. A batch is refused if a row begins or ends with more pad ids than another (the
    configuration's `pad_id`, or 0 where it has none). Other padding cannot be detected: rows padded alike, a single
    padded prompt, or another token used for padding.

    A model may be compiled in place by `model.compile()`, which leaves the ring's attention as it is. The first calls,
    and the first of each further shape, then take up to a minute longer.

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
        block: Name of a backend, "auto" for the fastest one, or a `heteroring.kernels.backend.Backend`.
        transport: "p2p", "copy-engine" or "auto", as for `heteroring.ring_attention`.

    Returns:
        (logits, cache): logits [B, V] of the last token on every rank, or [B, N, V] with `all_logits`, and this rank's
        RingCache. Without `all_logits` only the owner of the last token computes logits, and nothing else is gathered.

    Raises:
        ValueError: On every rank, if the prompt is shorter than the number of ranks, longer with `capacity` than the
            model's max_expected_seq_len, not of the partition's length, or padded; if the ranks' models, prompts or
            other arguments differ; and if the model is not one of heteroring.fms.ARCHITECTURES.
        RuntimeError: If a rank is lost.
    """
    strategy = strategy_of(model)
    call = Call("ring_prefill", group if group is not None else strategy.group, model)

    def describe() -> Fields:
        check_model(model)
        check_transport(transport)
        check_backend(block, device_of(model).type, dtype_of(model))
        chosen = _check_prompt(model, input_ids, partition, call.world_size, capacity)
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
            ("transport", transport),
            ("token ids", checked_tokens(input_ids, model.config.src_vocab_size)),
        )

    def empty() -> RingCache:
        return empty_cache(model, chosen, input_ids.shape[0], int(capacity), decode_speeds, call.group, block)

    with call:
        call.agree(describe, every_call=True)
        chosen = partition or strategy.partition(input_ids.shape[1], call.world_size)
        cache = call.agree(lambda: (("part", "cache"),), empty)
        chunks = chunks_of(chosen, chunk)
        return Prefill(run_chunks(model, input_ids, chunks, cache, call, all_logits, transport), cache)


def run_chunks(
    model: nn.Module,
    input_ids: torch.Tensor,
    chunks: Sequence[Partition],
    cache: RingCache,
    call: Call,
    all_logits: bool,
    transport: str,
) -> torch.Tensor:
    """Run `input_ids` [B, N] through the model in chunks behind the tokens of `cache`, which then holds these, too.

    Returns logits on every rank: [B, V] of the last token, or [B, N, V]. An error leaves the finished chunks cached.
    """
    cache.full = 0  # no step of decode may follow an error
    device, done, found = device_of(model), 0, []
    like = torch.empty(len(input_ids), 0, model.config.src_vocab_size, dtype=dtype_of(model), device=device)
    for part in chunks:
        last = _owner_of_last(part)
        head = all_logits or (part is chunks[-1] and call.rank == last)

        def forward(part: Partition = part, head: bool = head, done: int = done) -> torch.Tensor | None:
            ring = Ring(part, call.group, cache.block, transport, prefix_lens=cache.held if any(cache.held) else ())
            tokens = shard(input_ids[:, done : done + part.seq_len], part, call.rank, 1).to(device)
            return _forward(model, tokens, ring, call.rank, cache, head, all_tokens=all_logits)

        logits = call.agree(lambda: (("part", "forward"),), forward)
        cache.held = tuple(map(add, cache.held, part.block_lens))
        done += part.seq_len
        if all_logits:
            found.append(logits if call.world_size == 1 else gather_all(logits, part, like, call.group))
    if all_logits:
        logits = torch.cat(found, 1)
    else:
        logits = logits[:, -1] if call.world_size == 1 else share_last(logits, last, like, call.group)
    cache.plan_turns()  # when all else is queued, since the host waits for the copy to the device
    return logits


def _check_prompt(
    model: nn.Module, input_ids: torch.Tensor, partition: Partition | None, world_size: int, capacity: int
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
    chosen = partition or strategy_of(model).partition(seq_len, world_size)
    if chosen.world_size != world_size:
        raise ValueError(
            f"the partition has {chosen.world_size} ranks ({chosen.block_lens}), the group has {world_size}"
        )
    if chosen.seq_len != seq_len:
        raise ValueError(f"block_lens {chosen.block_lens} sum to {chosen.seq_len}, but the prompt has {seq_len} tokens")
    return chosen


def check_chunk(chunk: int | None) -> int | None:
    """`chunk` as an int, or None. Raises ValueError if it is less than a token."""
    return None if chunk is None else whole_number("chunk", chunk, "a chunk has 1 token or more", least=1)


def _owner_of_last(partition: Partition) -> int:
    """The rank that holds the prompt's last token."""
    return next(
        rank
        for rank in range(partition.world_size)
        if any(start < stop == partition.seq_len for start, stop in partition.spans(rank))
    )


def _forward(
    model: nn.Module, tokens: torch.Tensor, ring: Ring, rank: int, cache: RingCache, head: bool, all_tokens: bool
) -> torch.Tensor | None:
    """Run the model on this rank's `tokens` [B, n_r]; if `head`, return logits [B, n_r, V], or [B, 1, V] of the last.

    FMS cannot run on zero tokens, so a rank without tokens only takes part in each layer's ring attention.
    """
    if not tokens.shape[1]:
        for layer, (keys, values) in zip(attention_layers(model), cache.layers, strict=True):
            queries = keys.new_empty(len(tokens), layer.nheads, 0, layer.emb_kq_per_head)
            prefilled(queries, keys[:, :, : ring.held], values[:, :, : ring.held], ring, layer.scale_factor)
        return None
    positions = torch.from_numpy(ring.partition.positions(rank)) + cache.seq_len
    inputs = {
        "position_ids": positions.to(tokens.device)[None],
        "past_key_value_states": cache.layers,
        "use_cache": True,
        "attn_name": OP,
        "ring": ring,
    }
    if not head:
        model.base_model(tokens, **inputs)
        return None
    return model(tokens, last_n_tokens=0 if all_tokens else 1, **inputs)[0]
