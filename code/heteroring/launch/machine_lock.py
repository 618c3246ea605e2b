"""The machine-wide lock, which a measurement's process and its ranks hold, so that only one runs at a time.

The lock is a file that all users of the machine share: LOCK, or the file that the environment variable HETERORING_LOCK
names. Measurements of unrelated GPUs may have a lock each, and containers on one machine need one that they all see. If
the variable is empty, nothing is locked.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from heteroring.launch.heartbeat import beat
from heteroring.procfs import has_ended

VARIABLE = "HETERORING_LOCK"
# Not in TMPDIR, which may be a different folder for each job and user.
LOCK = Path("/tmp/heteroring.lock")
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock, as it described itself in the file."""

    pid: int
    command: str
    folder: str
    since: str

    def __str__(self) -> str:
        gone = ", which has ended and left a rank behind" if has_ended(self.pid) else ""
        words = f"process {self.pid}{gone}, since {self.since} in {self.folder}: {self.command}"
        return " ".join(words.split())


class Lock:
    """A lock that is held; a spawned process that is passed it also holds it for as long as it lives."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple:
        return _inherited, (reduction.DupFd(self.fd),)


def _inherited(passed: Any) -> Lock:
    fd = passed.detach()
    os.set_inheritable(fd, False)
    return Lock(fd)


@contextmanager
def machine_lock() -> Iterator[Lock | None]:
    """Hold this machine's lock within the context; yields None where nothing is locked.

    While another process holds it, wait, and name that process on stderr. If the default file cannot be locked, warn
    and continue without a lock. Raises ValueError, naming file and reason, if the file in HETERORING_LOCK cannot be.
    """
    path = _path()
    if path is None:
        yield None
        return
    try:
        lock = _wait(path)
    except OSError as error:
        reason = f"cannot lock {path}: {error.strerror}"
        if VARIABLE in os.environ:
            raise ValueError(f"{VARIABLE}: {reason}") from error
        print(f"heteroring: warning: {reason}; another measurement at the same time goes unnoticed", file=sys.stderr)
        yield None
        return
    try:
        yield lock
    finally:
        os.close(lock.fd)  # not unlocked, which would also release the lock of a rank that is still alive


def holder() -> Holder | str | None:
    """The holder of this machine's lock, a phrase if the file does not describe it, or None if nobody holds it."""
    path = _path()
    with suppress(OSError):
        fd = os.open(path or os.devnull, os.O_RDONLY)
        try:
            if path is not None and not _take(fd, fcntl.LOCK_SH):
                return _read(fd)
        finally:
            os.close(fd)
    return None


def _path() -> Path | None:
    named = os.environ.get(VARIABLE)
    if named is None:
        return LOCK
    return Path(named) if named else None


def _wait(path: Path) -> Lock:
    fd, told = _open(path), None
    try:
        while not _take(fd, fcntl.LOCK_EX):
            if (by := _read(fd)) != told:
                told = by
                print(f"heteroring: waiting for {by} ({VARIABLE}={path})", file=sys.stderr, flush=True)
            beat()  # other ranks may wait for this one
            time.sleep(POLL_SECONDS)
        me = Holder(os.getpid(), shlex.join(sys.argv), os.getcwd(), time.strftime("%Y-%m-%d %H:%M:%S"))
        with suppress(OSError):  # another user's file, which may be locked but not written
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(asdict(me)).encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return Lock(fd)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        return os.open(path, flags)  # without O_CREAT, which Linux refuses for another user's file in a shared folder
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        with suppress(FileExistsError):
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL)
            os.fchmod(fd, 0o666)  # for all users, whatever the umask
            return fd
        return os.open(path, flags)


def _take(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(fd: int) -> Holder | str:
    with suppress(ValueError, TypeError, RecursionError):
        found = Holder(**json.loads(os.pread(fd, 1 << 20, 0)))
        if type(found.pid) is int:
            return found
    return "another process, which has not said who it is"
