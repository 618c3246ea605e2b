"""How a run of launched ranks can fail. Torch-free, for the command line."""

from __future__ import annotations

import signal


class RunError(RuntimeError):
    """A run did not come to its end; no rank is left, and nothing was written."""

    exit_code = 1


class RankError(RunError):
    """A rank died or hung. `rank` is the one that began it; the message holds its traceback."""

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(message)
        self.rank = rank


class Interrupted(RunError):
    """The launching process was told to end by the signal `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}: all ranks have ended")
        self.signum = signum
        self.exit_code = 128 + signum
