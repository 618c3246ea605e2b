"""The git commit of the running package, and whether its tree was modified."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

UNKNOWN = "unknown"
COMMIT_VARIABLE = "HETERORING_COMMIT"
SECONDS = 10.0  # time-out of a program that does not answer


class Commit(NamedTuple):
    """`name` is the commit, or "unknown"; `dirty` whether the tree differs from it, None where that is not known."""

    name: str
    dirty: bool | None


def read_commit() -> Commit:
    """The commit of the tree that this package lies in, as it is now.

    The environment's COMMIT_VARIABLE names the commit of a tree copied without git. A tree is dirty if results could
    differ: if a tracked file differs, or the package has a new one. Data does not count, or every job would make the
    next one dirty. A warning on stderr tells of a repository that git does not trust because another user owns it.
    """
    if COMMIT_VARIABLE in os.environ:
        return Commit(os.environ[COMMIT_VARIABLE], None)
    file = Path(__file__)
    # The package may be installed inside another repository, to which it does not belong.
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        _warn_if_untrusted(file.parent)
        return Commit(UNKNOWN, None)
    head, package = _git(file.parent, "rev-parse", "HEAD"), file.parents[1]
    tracked = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)data")
    inside = _git(package, "status", "--porcelain", "--untracked-files=all", "--", ".")
    if head is None or tracked is None or inside is None:
        return Commit(head or UNKNOWN, None)
    return Commit(head, bool(tracked or inside))


def _warn_if_untrusted(folder: Path) -> None:
    """Print a one-line remedy if git refuses to read the repository because it belongs to another user."""
    for line in complaint_of("git", "-C", str(folder), "rev-parse").splitlines():
        if (mend := line.strip()).startswith("git config") and "safe.directory" in mend:
            print(
                "heteroring: warning: the record will not name its commit, since git does not trust the repository of "
                f"another user; to trust it: {mend}",
                file=sys.stderr,
            )


def _git(folder: Path, *words: str) -> str | None:
    return output_of("git", "-C", str(folder), *words)


def output_of(*command: str) -> str | None:
    """The stripped output of `command`; None if there is no such program, or it fails."""
    done = _run(command)
    return done.stdout.strip() if done and done.returncode == 0 else None


def complaint_of(*command: str) -> str:
    """The stderr of `command`; empty if there is no such program."""
    done = _run(command)
    return done.stderr if done else ""


def _run(command: tuple[str, ...]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
