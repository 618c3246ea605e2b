"""Peer access: whether the GPUs of a group's ranks can map one another's memory."""

from __future__ import annotations

import socket
import warnings
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from heteroring.ring.transport.cuda_driver import is_installed

_known: WeakKeyDictionary[dist.ProcessGroup, dict[torch.device, bool]] = WeakKeyDictionary()


def peers_can_be_accessed(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether every rank can write to the memory of every other rank's GPU; the same answer on all ranks.

    `device` is this rank's GPU. All ranks make the first call together; the answer is kept for the group. A rank that
    only lacks the package cuda-bindings warns.
    """
    known = _known.setdefault(group, {})
    if device not in known:
        mine = socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)
        everyone = _gather(mine, group)
        known[device] = all(_gather(_reaches(device, mine, everyone) and _has_driver(), group))
    return known[device]


def _reaches(device: torch.device, mine: tuple[str, str], everyone: list[tuple[str, str]]) -> bool:
    """Whether all ranks are on this host, each on a GPU of its own that this process sees and can access."""
    if len(set(everyone)) < len(everyone) or any(host != mine[0] for host, _ in everyone):
        return False
    visible = {str(torch.cuda.get_device_properties(i).uuid): i for i in range(torch.cuda.device_count())}
    return all(
        uuid in visible and torch.cuda.can_device_access_peer(device, visible[uuid])
        for _, uuid in everyone
        if uuid != mine[1]
    )


def _has_driver() -> bool:
    if not is_installed():
        warnings.warn(
            "transport 'copy-engine' needs the package cuda-bindings, which is not installed: KV moves by 'p2p'",
            stacklevel=2,
        )
    return is_installed()


def _gather(mine: object, group: dist.ProcessGroup) -> list:
    answers: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(answers, mine, group=group)
    return answers
