"""Generation of text by a language model over the ring: prefill, then decode token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from heteroring.arguments import flag, positive, whole_number
from heteroring.fms.continuation import Continuation
from heteroring.fms.models import check_model, strategy_of
from heteroring.fms.prefill import ring_prefill
from heteroring.fms.weights import device_of
from heteroring.kernels.backend import Backend
from heteroring.planning.rebalance import Rebalancer
from heteroring.ring.consistency import Call, Fields
from heteroring.ring.partition import Partition

EOS_EVERY = 16
"""Captured steps between two looks at whether all sequences have ended, for which the host waits for the device."""


@torch.no_grad()
def ring_generate(
    model: nn.Module,
    input_ids: torch.Tensor,
    partition: Partition | None = None,
    max_new_tokens: int = 256,
    *,
    group: dist.ProcessGroup | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 10,
    seed: int | None = None,
    eos_token_id: int | None = None,
    decode_speeds: Sequence[float] | None = None,
    chunk: int | None = None,
    rebalance: bool | Rebalancer = False,
    block: str | Backend = "auto",
    transport: str = "auto",
) -> torch.Tensor:
    """Continue prompts by up to `max_new_tokens` tokens, greedily or by sampling.

    Rank 0 chooses each token and broadcasts it, because devices of different kinds may round logits differently.
    Generation ends when every sequence has produced `eos_token_id`; a sequence that has done so continues until the
    others have, as in FMS's generate.

    On CUDA, steps are replayed as a CUDA graph from the third token on, and whether all sequences have ended is checked
    every EOS_EVERY tokens. Sampling therefore draws random numbers for up to EOS_EVERY - 1 tokens that are not
    returned, without a seed from PyTorch's global generator. A step that cannot be captured, because `block` is not the
    split-KV kernel of decode or because a layer makes the host wait, runs eagerly, with a warning. After
    `model.compile()`, the captured step is a compiled one.

    Args:
        model: A language model of FMS whose weights every rank holds.
        input_ids: The whole prompts [B, N], all of one length, the same on every rank.
        partition: Which tokens each rank holds; None stands for that of the model's RingAttentionStrategy.
        max_new_tokens: Most new tokens, 1 or more.
        group: The process group; None stands for that of the model's RingAttentionStrategy.
        do_sample: Whether to sample; otherwise the likeliest token is taken.
        temperature: Divisor of the logits in sampling, any positive number.
        top_k: Number of likeliest tokens to sample from; 0 stands for all.
        seed: Seed of a generator for this call alone, 0 to 2^64 - 1; None stands for PyTorch's global generator.
        eos_token_id: The token that ends a sequence; None for none.
        decode_speeds: Relative speeds of decode per rank (heteroring.fms.cache.next_owner); None for equal speeds.
        chunk: Most tokens of the prompts that go through the model at a time, as for `ring_prefill`.
        rebalance: Whether to split chunks by the speeds that ranks show, as for `ring_prefill`.
        block: Name of a backend, "auto" for the fastest one, or a `heteroring.kernels.backend.Backend`.
        transport: "p2p", "copy-engine" or "auto", as for `heteroring.ring_attention`.

    Returns:
        Token ids [B, N + new] with new <= max_new_tokens, the same on every rank.

    Raises:
        ValueError: On every rank, for a sampling argument out of range, if prompt and new tokens exceed the model's
            max_expected_seq_len, and as `ring_prefill` does.
        RuntimeError: If a rank is lost.
    """
    call = Call("ring_generate", group if group is not None else strategy_of(model).group, model)

    def describe() -> Fields:
        check_model(model)
        most = model.config.src_vocab_size
        top = whole_number("top_k", top_k, f"it must lie between 0 (all tokens) and the vocabulary's {most}", most=most)
        new = whole_number("max_new_tokens", max_new_tokens, "it must be a whole number of 1 or more", least=1)
        of_seed = "it must be a whole number from 0 to 2^64 - 1, or None"
        of_eos = f"it must be a whole number below the vocabulary's {most}, or None"
        return (
            ("max_new_tokens", new),
            ("do_sample", flag("do_sample", do_sample)),
            ("temperature", positive("temperature", temperature)),
            ("top_k", top),
            ("seed", None if seed is None else whole_number("seed", seed, of_seed, most=2**64 - 1)),
            (
                "eos_token_id",
                None if eos_token_id is None else whole_number("eos_token_id", eos_token_id, of_eos, most=most - 1),
            ),
        )

    with call:
        call.agree(describe, every_call=True)
        new_tokens, top, heat = int(max_new_tokens), int(top_k), float(temperature)  # as checked above
        prefill = ring_prefill(
            model,
            input_ids,
            partition,
            group=group,
            capacity=new_tokens,
            decode_speeds=decode_speeds,
            chunk=chunk,
            rebalance=rebalance,
            block=block,
            transport=transport,
        )
        device = device_of(model)
        generator = None if seed is None else torch.Generator(device).manual_seed(int(seed))

        def choice(logits: torch.Tensor) -> torch.Tensor:
            return choose(logits, generator, heat, top) if do_sample else logits.argmax(-1, keepdim=True)

        made = Continuation(model, prefill, new_tokens, choice, eos_token_id, generator)
        while made.tokens < new_tokens:
            if made.tokens == 2:
                made.capture()
            if made.tokens % (EOS_EVERY if made.captured else 1) == 0 and made.ended:
                break
            made.advance()
        return torch.cat((input_ids.to(device), made.ids), 1)


def choose(logits: torch.Tensor, generator: torch.Generator | None, temperature: float, top_k: int) -> torch.Tensor:
    """Sample one token of each sequence.

    Args:
        logits: Logits [B, V].
        generator: Where random numbers come from; None for PyTorch's global one.
        temperature: Divides the logits, 0 or more; near 0 the likeliest token is chosen.
        top_k: How many of the likeliest tokens are drawn from, 0 for all. Tokens as likely as the last of them may be
            drawn, too, as in FMS's generate.

    Returns:
        Token ids [B, 1].
    """
    if top_k:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    # In fp64: 16 bits are too few for the quotients and the probabilities, and 32 for temperatures below 1e-45. Where
    # CUDA multiplies by the reciprocal, that of a temperature below 1e-308 is infinite; 1e-300 gives the same result.
    below = logits.double() - logits.double().amax(-1, keepdim=True)
    likely = (below / max(temperature, 1e-300)).softmax(-1)
    # Sampled in fp32, or fp64 for fp64 logits: 16 bits would round the probabilities by up to 0.4 %.
    likely = likely.to(torch.promote_types(logits.dtype, torch.float32))
    # Draws like torch.multinomial, which would make the host wait to check its input.
    return (likely / torch.empty_like(likely).exponential_(1, generator=generator)).argmax(-1, keepdim=True)
