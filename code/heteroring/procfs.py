"""States of processes and the processor's name, read from /proc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def process_state(pid: int) -> str:
    """The kernel's letter for the state of `pid`, X if there is no such process; empty where there is no /proc."""
    if not Path("/proc/self").exists():
        return ""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def is_stopped(pid: int) -> bool:
    """Whether `pid` is stopped, by SIGSTOP or a debugger, and may go on."""
    return process_state(pid) in ("T", "t")


def has_ended(pid: int) -> bool:
    """Whether `pid` has ended, reaped by its parent or not."""
    return process_state(pid) in ("Z", "X")


def cpu_model() -> str:
    """The processor's name as Linux gives it, or "unknown"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
