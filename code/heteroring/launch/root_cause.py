"""Find the rank that made a run fail. Other ranks fail after it, because they lose their connection to it."""

from __future__ import annotations

import json
import signal
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heteroring.launch.errors import RankError
from heteroring.launch.heartbeat import lost_peers
from heteroring.launch.stack_dumps import Stacks

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from heteroring.launch.watchdog import Watchdog


@dataclass(frozen=True)
class Account:
    """What a rank wrote when it raised: traceback, seconds of `time.monotonic`, and ranks that had ended by then."""

    at: float
    traceback: str
    lost: tuple[int, ...]


class Accounts:
    """The accounts of ranks that raised, one file per rank in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, rank: int, error: BaseException, beyond: str) -> None:
        """Write the account of this process's error.

        Args:
            rank: This process's rank.
            error: The error.
            beyond: Path of a source file whose frames are left out where the traceback begins.
        """
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == beyond:
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace or error.__traceback__)
        account = Account(time.monotonic(), "".join(lines).rstrip(), tuple(lost_peers()))
        (self._folder / f"rank{rank}.json").write_text(json.dumps(asdict(account)))

    def read(self, world_size: int) -> dict[int, Account]:
        """The accounts that were written, by rank."""
        paths = {rank: self._folder / f"rank{rank}.json" for rank in range(world_size)}
        return {rank: Account(**json.loads(path.read_text())) for rank, path in paths.items() if path.exists()}


def blame(error: ChildFailedError | None, watchdog: Watchdog, accounts: Accounts, stacks: Stacks) -> RankError:
    """Choose the rank that made a run fail.

    It is a rank that hung; else one that ended without raising, as a process that is killed does; else the one that
    raised first.

    Args:
        error: The launcher's own report, which concerns one rank; None if there is none.
        watchdog: The watchdog of the run, stopped.
        accounts: What ranks that raised have written.
        stacks: What ranks wrote about where they were, for one that hangs.

    Returns:
        The error to raise.
    """
    if watchdog.hung is not None:
        return _hang(watchdog, stacks)
    told = accounts.read(watchdog.world_size)
    mute = _mute(error, watchdog, told)
    if mute is not None:
        rank, how = mute
        then = [f"rank {other} then raised:\n{account.traceback}" for other, account in told.items()]
        return RankError(rank, "\n".join([f"rank {rank} {how}", *then]))
    if told:
        rank = min(told, key=lambda rank: told[rank].at)
        return RankError(rank, f"rank {rank} raised:\n{told[rank].traceback}")
    return RankError(0, "rank 0, and every other, ended without an error message")


def _mute(error: ChildFailedError | None, watchdog: Watchdog, told: dict[int, Account]) -> tuple[int, str] | None:
    """A rank that ended without raising, and how it ended; None if there is none.

    The watchdog, the launcher's report, and the accounts of other ranks are looked at, in this order.
    """
    if watchdog.killed is not None:
        return watchdog.killed, f"was ended by {signal.Signals(watchdog.signal).name}"
    for rank, failure in (error.failures if error else {}).items():
        if rank not in told and failure.exitcode < 0:
            return rank, f"was ended by {signal.Signals(-failure.exitcode).name}"
        if rank not in told:
            return rank, f"ended with exit code {failure.exitcode}"
    for account in told.values():
        for rank in account.lost:
            if rank not in told:
                return rank, "ended without an error message"
    return None


def _hang(watchdog: Watchdog, stacks: Stacks) -> RankError:
    lines = [f"rank {watchdog.hung} hangs: no sign of life for {watchdog.silent_for:.1f} s"]
    for rank in sorted(range(watchdog.world_size), key=lambda rank: rank != watchdog.hung):
        lines += [f"rank {rank} was at (most recent call first):", *(stacks.answer(rank) or ["  it could not tell"])]
    return RankError(watchdog.hung, "\n".join(lines))
