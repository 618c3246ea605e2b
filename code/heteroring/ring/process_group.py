"""The process group of a call: this process's rank in it, its world size, and exchange of bytes between its hosts."""

from __future__ import annotations

from functools import cache

import torch
import torch.distributed as dist


def members(group: dist.ProcessGroup | None) -> tuple[dist.ProcessGroup | None, int, int]:
    """(group, rank, world size) of `group`, of all processes for None, or (None, 0, 1) where no group is initialized.

    Raises ValueError if this process is not a member of `group`.
    """
    if group is None and dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    if group is None:
        return None, 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not a member of the group it passed")
    return group, rank, dist.get_world_size(group)


def is_group(group: object) -> bool:
    """Whether `members` takes `group`: None, a ProcessGroup, or torch's placeholder for a group of other ranks."""
    if group is None or not dist.is_available():
        return group is None
    return isinstance(group, dist.ProcessGroup) or group is dist.GroupMember.NON_GROUP_MEMBER


def exchange_device(group: dist.ProcessGroup, device: torch.device | None) -> torch.device:
    """The device, of the same type on all ranks, for bytes that a rank computing on `device` exchanges over `group`."""
    types = [each.type for each in group._device_types]
    if "cpu" in types:
        return torch.device("cpu")
    if device is not None and device.type in types:
        return device
    return group.bound_device_id or torch.device("cuda", torch.cuda.current_device())


def all_bytes(mine: bytes, group: dist.ProcessGroup, device: torch.device | None) -> list[bytes]:
    """Exchange bytes between all ranks of a group; every rank must call, with equally many.

    The host waits for the hosts of the other ranks to call, but not for work queued earlier on `device`: the exchange
    has a stream of its own.

    Args:
        mine: This rank's bytes.
        group: The process group.
        device: The device that this rank computes on.

    Returns:
        The bytes of every rank, in rank order.

    Raises:
        RuntimeError: If a rank is lost.
    """
    where = exchange_device(group, device)
    with torch.cuda.stream(_beside(where) if where.type == "cuda" else None):
        sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(where)
        everyone = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
        try:
            dist.all_gather(everyone, sent, group=group)
        except RuntimeError as error:
            raise RuntimeError(f"rank {dist.get_rank(group)} lost a peer: {error}") from error
        return [each.tobytes() for each in torch.stack(everyone).cpu().numpy()]


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
