"""One check before a model runs: what is wrong on one rank, or differs between ranks, is an error on all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
import torch.distributed as dist

from heteroring.ring.agreement import agree

Call = tuple[tuple[str, object], ...]


def agreed(
    describe: Callable[[], Call],
    group: dist.ProcessGroup | None,
    world_size: int,
    device: torch.device,
    *,
    every_call: bool = True,
) -> None:
    """Have all ranks compare what `describe()` returns, (field, value) pairs; a ValueError it raises stops all ranks.

    On CUDA the host waits for the device, unless `every_call` is False and this description has been agreed before.
    """
    if world_size == 1:
        describe()
        return
    try:
        call, problem = describe(), None
    except (ValueError, TypeError) as error:
        call, problem = (), str(error)
    agree(call, problem, group, device, every_call=every_call)


def checked_tokens(tokens: torch.Tensor, vocabulary: int) -> str:
    """A digest of token ids, by which ranks compare them. Raises ValueError for one outside the vocabulary."""
    tokens = tokens.long().cpu()
    least, most = tokens.aminmax()
    if least < 0 or most >= vocabulary:
        worst = int(least if least < 0 else most)
        raise ValueError(f"token id {worst} is outside the model's vocabulary of {vocabulary}")
    return hashlib.blake2b(tokens.numpy().tobytes(), digest_size=8).hexdigest()
