"""Ranks make sure that they mean the same call before any of them waits for another's data."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

_DIGEST_BYTES = 16

_agreed: WeakKeyDictionary[dist.ProcessGroup, set[tuple]] = WeakKeyDictionary()


class Disagreement(ValueError):
    """The ranks of a group do not hold the same call; raised on every one of them."""


def agree(
    call: tuple[tuple[str, object], ...],
    problem: str | None,
    group: dist.ProcessGroup,
    device: torch.device,
    *,
    every_call: bool = False,
) -> None:
    """Compare `call`, (field, value) pairs, and `problem`, an error in this rank's own arguments, with all ranks'.

    On the CPU the ranks exchange a digest of 16 bytes in every call, which is little beside attention there. A host
    that must not wait for its accelerator cannot do so: there a call is compared once for each group. A rank that later
    leaves an agreed call for another is caught by the group's time-out at best; by copy engines, whose messages no
    time-out watches, ranks may read what was meant for another call. `every_call` makes the host wait and compare, for
    what is called so seldom that this costs nothing.

    Raises Disagreement, on every rank, naming what differs and each rank's value.
    """
    every_call = every_call or device.type == "cpu"
    agreed = _agreed.setdefault(group, set())
    if problem is None and not every_call and call in agreed:
        return
    mine = bytes(_DIGEST_BYTES) if problem else _digest(call)
    digests = _gather(mine, group, device)
    if problem is None and all(digest == mine for digest in digests):
        if not every_call:
            agreed.add(call)
        return
    raise Disagreement(_difference(call, problem, group, device))


@lru_cache(maxsize=1024)
def _digest(call: tuple[tuple[str, object], ...]) -> bytes:
    return hashlib.blake2b(json.dumps(call).encode(), digest_size=_DIGEST_BYTES).digest()


def _gather(mine: bytes, group: dist.ProcessGroup, device: torch.device) -> list[bytes]:
    """Every rank's bytes, in rank order; all ranks must bring the same number of them."""
    sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(device)
    gathered = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, sent, group=group)
    return [part.cpu().numpy().tobytes() for part in gathered]


def _difference(
    call: tuple[tuple[str, object], ...], problem: str | None, group: dist.ProcessGroup, device: torch.device
) -> str:
    """What is wrong, in words: this rank's own problem, another's, or the first field that differs."""
    message = json.dumps({"call": dict(call), "problem": problem}).encode()
    lengths = [int.from_bytes(n, "big") for n in _gather(len(message).to_bytes(8, "big"), group, device)]
    padded = _gather(message.ljust(max(lengths)), group, device)
    answers = [json.loads(answer) for answer in padded]
    if problem:
        return problem
    for rank, answer in enumerate(answers):
        if answer["problem"]:
            return f"rank {rank}: {answer['problem']}"
    for field in answers[0]["call"]:
        values = [answer["call"].get(field) for answer in answers]
        if any(value != values[0] for value in values):
            break
    return f"ranks disagree on {field}: " + ", ".join(
        f"rank {rank} has {tuple(value) if isinstance(value, list) else value}" for rank, value in enumerate(values)
    )
