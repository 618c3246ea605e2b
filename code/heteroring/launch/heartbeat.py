"""Heartbeats of ranks in a memory-mapped file, by which the launching process sees which rank hangs."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from heteroring.procfs import has_ended

STARTING, RUNNING, DONE, FAILED = range(4)


@dataclass(frozen=True)
class Beat:
    """One rank's last heartbeat. `at` is in seconds of `time.monotonic`, which the processes of a host share."""

    pid: int
    state: int
    steps: int
    at: float


class Board:
    """One slot per rank in a memory-mapped file; a rank writes its own slot, the parent reads all.

    A slot is four 8-byte words, each stored whole: packing a slot as one structure would clear it first, and the
    parent could read a beat at time zero. A beat is cheap enough for every call of a backend.
    """

    _WORDS = 4

    def __init__(self, path: Path, world_size: int) -> None:
        """Open the board at `path`, creating it with every rank in state STARTING if it is not there."""
        self.path, self.world_size = path, world_size
        if not path.exists():
            path.write_bytes(struct.pack("=qqqq", 0, STARTING, 0, time.monotonic_ns()) * world_size)
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), world_size * self._WORDS * 8)
        self._words = memoryview(self._memory).cast("q")

    def read(self) -> list[Beat]:
        """The last beat of every rank, in rank order."""
        slots = (self._words[i : i + self._WORDS] for i in range(0, len(self._words), self._WORDS))
        return [Beat(pid, state, steps, at / 1e9) for pid, state, steps, at in slots]

    def write(self, rank: int, state: int, steps: int) -> None:
        """Write the heartbeat of this process.

        Args:
            rank: This process's rank.
            state: STARTING, RUNNING, DONE or FAILED.
            steps: Steps of the job that this rank has done.
        """
        for word, value in enumerate((os.getpid(), state, steps, time.monotonic_ns())):
            self._words[rank * self._WORDS + word] = value

    def close(self) -> None:
        """Unmap the file."""
        self._words.release()
        self._memory.close()


class _Pulse:
    """This process's own slot, if this process is a rank that `launch` started."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.rank = 0
        self.steps = 0
        self.beats = 0

    def __call__(self, state: int) -> None:
        self.beats += 1
        if self.board is not None:
            self.board.write(self.rank, state, self.steps)


_pulse = _Pulse()


def join(board: Board, rank: int) -> None:
    """Write this process's later heartbeats to `board`, as `rank`."""
    _pulse.board, _pulse.rank, _pulse.steps = board, rank, 0
    _pulse(RUNNING)


def beat() -> None:
    """Write a heartbeat; nothing in a process that is not a launched rank."""
    _pulse(RUNNING)


def beating(function: Callable) -> Callable:
    """Wrap `function` to write a heartbeat before each call."""

    @wraps(function)
    def alive(*args: Any, **kwargs: Any) -> Any:
        beat()
        return function(*args, **kwargs)

    return alive


def advance(steps: int = 1) -> None:
    """Write a heartbeat, and count `steps` more steps of the job as done."""
    _pulse.steps += steps
    _pulse(RUNNING)


def beats() -> int:
    """The number of heartbeats that this process has written."""
    return _pulse.beats


def leave(state: int) -> None:
    """Record that this rank is DONE or FAILED, after which no more heartbeats are expected of it."""
    _pulse(state)


def lost_peers() -> list[int]:
    """Other ranks whose processes have ended before they were done, as this rank sees it."""
    if _pulse.board is None:
        return []
    beats = enumerate(_pulse.board.read())
    return [rank for rank, beat in beats if beat.state == RUNNING and rank != _pulse.rank and has_ended(beat.pid)]
