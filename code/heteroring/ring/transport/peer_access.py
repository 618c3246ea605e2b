"""Whether the ranks of a group can reach into one another's memory."""

from __future__ import annotations

import socket
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

_known: WeakKeyDictionary[dist.ProcessGroup, dict[torch.device, bool]] = WeakKeyDictionary()


def peers_can_be_accessed(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether every rank's GPU can map the memory of every other's; the same answer on all ranks.

    `device` is this rank's. All ranks call it together the first time; the answer is kept.
    """
    known = _known.setdefault(group, {})
    if device not in known:
        mine = socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)
        everyone = _gather(mine, group)
        known[device] = all(_gather(_reaches(device, mine, everyone), group))
    return known[device]


def _reaches(device: torch.device, mine: tuple[str, str], everyone: list[tuple[str, str]]) -> bool:
    """Whether this rank reaches all: on this host, each on a GPU of its own that this process sees and can access."""
    if len(set(everyone)) < len(everyone) or any(host != mine[0] for host, _ in everyone):
        return False
    visible = {str(torch.cuda.get_device_properties(i).uuid): i for i in range(torch.cuda.device_count())}
    return all(
        uuid in visible and torch.cuda.can_device_access_peer(device, visible[uuid])
        for _, uuid in everyone
        if uuid != mine[1]
    )


def _gather(mine: object, group: dist.ProcessGroup) -> list:
    answers: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(answers, mine, group=group)
    return answers
