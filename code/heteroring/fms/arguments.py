"""What the arguments of a call on a model must be, each checked before the model runs."""

from __future__ import annotations

import hashlib
import operator

import torch


def whole_number(name: str, value: object, rule: str, least: int = 0, most: int | None = None) -> int:
    """`value` as an int. Raises ValueError, quoting `rule`, unless it is a whole number from `least` to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {value!r}: {rule}")
    return number


def whole_or_none(name: str, value: object) -> int | None:
    """`value` as an int, or None. Raises ValueError unless it is None or a whole number of 0 or more."""
    return None if value is None else whole_number(name, value, "it must be a whole number of 0 or more, or None")


def is_token_ids(tokens: object) -> bool:
    """Whether `tokens` is a tensor, of any shape, that an embedding takes."""
    return isinstance(tokens, torch.Tensor) and tokens.dtype in (torch.int32, torch.int64)


def described(tokens: object) -> str:
    """What `tokens` is, in words: dtype and shape of a tensor, the type of anything else."""
    return (
        f"{tokens.dtype} {tuple(tokens.shape)}"
        if isinstance(tokens, torch.Tensor)
        else f"of type {type(tokens).__name__}"
    )


def checked_tokens(tokens: torch.Tensor, vocabulary: int) -> str:
    """A digest of token ids, by which ranks compare them. Raises ValueError for one outside the vocabulary."""
    tokens = tokens.long().cpu()
    least, most = tokens.aminmax()
    if least < 0 or most >= vocabulary:
        worst = int(least if least < 0 else most)
        raise ValueError(f"token id {worst} is outside the model's vocabulary of {vocabulary}")
    return hashlib.blake2b(tokens.numpy().tobytes(), digest_size=8).hexdigest()
