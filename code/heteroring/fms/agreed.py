"""One check before a model runs: what is wrong on one rank, or differs between ranks, is an error on all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from heteroring.ring.agreement import Disagreement, agree

Call = tuple[tuple[str, object], ...]


def agreed(
    describe: Callable[[], Call],
    group: dist.ProcessGroup | None,
    world_size: int,
    device: torch.device,
    *,
    every_call: bool = True,
) -> None:
    """Have all ranks compare what `describe()` returns, (field, value) pairs of what JSON can hold.

    An error that it raises on any rank is one on all of them, a Disagreement, which is a ValueError. On CUDA the host
    waits for the device, unless `every_call` is False and this description has been agreed before.
    """
    if world_size == 1:
        describe()
        return
    call, problem, cause = (), None, None
    try:
        call = describe()
    except Exception as error:  # whatever it is: the others must not wait for a rank that has left
        problem, cause = str(error) or type(error).__name__, error
    try:
        agree(call, problem, group, device, every_call=every_call)
    except Disagreement as disagreement:
        raise disagreement from cause
