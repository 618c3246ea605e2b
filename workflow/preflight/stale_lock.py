"""Remove Snakemake's lock if the run that took it was killed, so that the next run can start.

Snakemake's lock does not name its holder. Each run therefore writes its host and process id beside the lock; a lock
whose owner, a process of this machine, has ended is stale.
"""

import json
import os
import shutil
import socket
from pathlib import Path


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_of(pid: int) -> str | None:
    """When the process started, in ticks since boot, to recognise a reused pid; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command, in parentheses, may hold anything; state is the next field and start the twentieth.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]


def take_ownership(state: Path) -> None:
    """Note in Snakemake's folder `state` that this process holds its lock."""
    pid = os.getpid()
    owner = {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "start": _start_of(pid)}
    new = state / f"owner.{pid}"
    new.write_text(json.dumps(owner))
    new.replace(state / "owner.json")


def drop_stale_lock(state: Path) -> bool:
    """Remove the lock in Snakemake's folder `state` if its owner, of this machine, has ended; return whether."""
    locks, owner_file = state / "locks", state / "owner.json"
    try:
        owner = json.loads(owner_file.read_text())
        # A lock newer than the note belongs to a run that has not written its own yet.
        if not any(locks.iterdir()) or locks.stat().st_mtime > owner_file.stat().st_mtime:
            return False
        alive = owner["boot"] == _boot() and owner["start"] == _start_of(owner["pid"])
        if owner["host"] != socket.gethostname() or alive:
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    shutil.rmtree(locks, ignore_errors=True)
    return True
