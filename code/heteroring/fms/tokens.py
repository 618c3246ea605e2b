"""Checks of token ids and prompts, made before the language model runs."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def is_token_ids(tokens: object) -> bool:
    """Whether `tokens` is a dense tensor with data, of any shape, of a dtype that an embedding accepts."""
    integers = (torch.int32, torch.int64)
    return isinstance(tokens, torch.Tensor) and not _defect(tokens) and tokens.dtype in integers


def described(tokens: object) -> str:
    """Description for an error message: dtype and shape of a dense tensor, else its type."""
    if not isinstance(tokens, torch.Tensor):
        return f"of type {type(tokens).__name__}"
    return _defect(tokens) or f"{tokens.dtype} {tuple(tokens.shape)}"


def _defect(tokens: torch.Tensor) -> str | None:
    """Why token ids cannot be read from a tensor, whatever its dtype and shape; None if they can."""
    if tokens.is_nested or tokens.layout != torch.strided:
        return f"{'nested' if tokens.is_nested else tokens.layout}, not dense"
    return "on the meta device, without data" if tokens.is_meta else None


def check_not_padded(input_ids: torch.Tensor, config: Any) -> None:
    """Raise ValueError if rows of input_ids [B, N] look like prompts of different lengths padded to one length.

    They do if one row begins, or ends, with more pad ids than another. The pad id is that of the model's `config`.
    Where that has none (None, -1), it is 0, with which FMS's pad_input_ids pads; then a difference of one token is
    accepted, because it may belong to the prompt.
    """
    pad_id, least = getattr(config, "pad_id", None), 1
    if pad_id is None or not 0 <= pad_id < config.src_vocab_size:
        pad_id, least = 0, 2
    is_pad = (input_ids == pad_id).cpu()
    for side, mask in (("begins", is_pad), ("ends", is_pad.flip(1))):
        pads = mask.cumprod(1).sum(1)
        most, fewest = int(pads.argmax()), int(pads.argmin())
        if pads[most] - pads[fewest] >= least:
            raise ValueError(
                f"row {most} of input_ids {side} with the pad id {pad_id} {pads[most]} times, row {fewest} "
                f"{pads[fewest]} times: padding would be attended to. Prompts of different lengths must be prefilled "
                "one by one"
            )


def checked_tokens(tokens: torch.Tensor, vocabulary: int) -> str:
    """A digest of token ids, by which ranks compare them. Raises ValueError for an id outside the vocabulary."""
    tokens = tokens.long().cpu()
    least, most = tokens.aminmax()
    if least < 0 or most >= vocabulary:
        worst = int(least if least < 0 else most)
        raise ValueError(f"token id {worst} is outside the model's vocabulary of {vocabulary}")
    return hashlib.blake2b(tokens.numpy().tobytes(), digest_size=8).hexdigest()
