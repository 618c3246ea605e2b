"""What a rank says about itself when asked: its Python stack, written by faulthandler on a signal."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASK = signal.SIGUSR1

_WAITING = ("/torch/distributed/", "/heteroring/ring/")


class Stacks:
    """One file a rank in `folder`: the rank makes it ready, the parent asks with the signal ASK and reads it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def ready(self, rank: int) -> Iterator[None]:
        """Answer ASK while the block runs, as `rank`, also if the interpreter is stuck in a call."""
        with open(self._path(rank), "w") as file:
            # Any thread may take the signal, and one of a library's own has no Python stack: so all are written.
            faulthandler.register(ASK, file=file, all_threads=True)
            try:
                yield
            finally:
                faulthandler.unregister(ASK)

    def answered(self, rank: int) -> bool:
        """Whether the rank has written its stack, down to its first frame."""
        return self._text(rank).endswith(" in <module>\n")

    def answer(self, rank: int) -> list[str]:
        """Frames of the rank's main thread, innermost first, without those that launched it; empty if it is mute."""
        main_thread = self._text(rank).rpartition("most recent call first):\n")[2]
        frames = [line for line in main_thread.splitlines() if line.startswith("  File ")]
        launcher = [index for index, frame in enumerate(frames) if frame.endswith(" in _work")]
        return frames[: launcher[0]] if launcher else frames

    def waits(self, rank: int) -> bool:
        """Whether the rank was waiting for another: its innermost frame is one that exchanges data."""
        frames = self.answer(rank)
        return bool(frames) and any(place in frames[0] for place in _WAITING)

    def _text(self, rank: int) -> str:
        with suppress(OSError):
            return self._path(rank).read_text()
        return ""

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.stack"
