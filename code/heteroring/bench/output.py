"""What another program prints, and what it complains of."""

from __future__ import annotations

import subprocess

SECONDS = 10.0


def output_of(*command: str) -> str | None:
    """What `command` prints, without the space around it; None if there is no such program, or it fails."""
    done = _run(command)
    return done.stdout.strip() if done and done.returncode == 0 else None


def complaint_of(*command: str) -> str:
    """What `command` says on stderr; empty if there is no such program."""
    done = _run(command)
    return done.stderr if done else ""


def _run(command: tuple[str, ...]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
