"""Python stacks of ranks, which faulthandler writes to a file on a signal."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASK = signal.SIGUSR1

_WAITING = ("/torch/distributed/", "/heteroring/ring/")


class Stacks:
    """One file per rank in `folder`: the rank prepares it, the parent sends the signal ASK and reads it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def ready(self, rank: int) -> Iterator[None]:
        """Answer ASK within the context, as `rank`, also if the interpreter is stuck in a call."""
        with open(self._path(rank), "w") as file:
            # All threads, because any may receive the signal, and a library's own thread has no Python stack.
            faulthandler.register(ASK, file=file, all_threads=True)
            try:
                yield
            finally:
                faulthandler.unregister(ASK)

    def answered(self, rank: int) -> bool:
        """Whether the rank has written its stack completely."""
        return self._text(rank).endswith(" in <module>\n")

    def answer(self, rank: int) -> list[str]:
        """Frames of the rank's main thread, innermost first, without those of the launcher; empty without an answer."""
        main_thread = self._text(rank).rpartition("most recent call first):\n")[2]
        frames = [line for line in main_thread.splitlines() if line.startswith("  File ")]
        launcher = [index for index, frame in enumerate(frames) if frame.endswith(" in _work")]
        return frames[: launcher[0]] if launcher else frames

    def waits(self, rank: int) -> bool:
        """Whether the rank was waiting for another, that is, its innermost frame exchanges data."""
        frames = self.answer(rank)
        return bool(frames) and any(place in frames[0] for place in _WAITING)

    def _text(self, rank: int) -> str:
        with suppress(OSError):
            return self._path(rank).read_text()
        return ""

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.stack"
