"""What another program prints."""

from __future__ import annotations

import subprocess

SECONDS = 10.0


def output_of(*command: str) -> str | None:
    """What `command` prints, without the space around it; None if there is no such program, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
