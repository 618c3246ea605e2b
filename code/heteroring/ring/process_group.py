"""Who takes part in a call over a group."""

from __future__ import annotations

import torch.distributed as dist


def members(group: dist.ProcessGroup | None) -> tuple[dist.ProcessGroup | None, int, int]:
    """(group, rank in it, world size): of all processes for None, and (None, 0, 1) where there is no group at all.

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
    """Whether `members` can take `group`: None, a ProcessGroup, or what stands for one of others."""
    if group is None or not dist.is_available():
        return group is None
    return isinstance(group, dist.ProcessGroup) or group is dist.GroupMember.NON_GROUP_MEMBER
