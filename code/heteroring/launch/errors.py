"""Errors of a run of launched ranks. Torch-free, so that the command line starts fast."""

from __future__ import annotations

import signal


class RunError(RuntimeError):
    """A run did not complete; no rank is left running, and nothing was written."""

    exit_code = 1


class RankError(RunError):
    """A rank died or hung. `rank` is the root cause; the message holds its traceback."""

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(message)
        self.rank = rank


class Interrupted(RunError):
    """The launching process was told to end by the signal `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}: all ranks have ended")
        self.signum = signum
        self.exit_code = 128 + signum
