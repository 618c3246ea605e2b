"""CUDA streams of several ranks, simulated in one process: work is queued, then run in any order that is allowed.

`fake_driver` stands in for heteroring.ring.transport.cuda_driver on these streams and on the CPU's memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from random import Random
from types import SimpleNamespace


class Stream:
    """A queue of operations, (ready, run) pairs, which are run in order, each once it is ready."""

    def __init__(self) -> None:
        self.queue: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self.done = 0

    @property
    def cuda_stream(self) -> Stream:
        return self

    def add(self, run: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        self.queue.append((ready, run))

    def __ne__(self, other: object) -> bool:
        """As in PyTorch, where a stream is neither equal nor unequal to None."""
        return other is not None and self is not other

    def wait_stream(self, other: Stream) -> None:
        count = len(other.queue)
        self.add(lambda: None, lambda: other.done >= count)


def _word(address: int) -> ctypes.c_uint32:
    return ctypes.c_uint32.from_address(address)


def word(address: int) -> int:
    """The 32 bits at `address`."""
    return _word(address).value


def _write_flag(stream: Stream, address: int, value: int) -> None:
    stream.add(lambda: setattr(_word(address), "value", value))


def _await_flag(stream: Stream, address: int, value: int) -> None:
    stream.add(lambda: None, lambda: word(address) == value)


def _copy_rows(stream: Stream, target: int, source: int, rows: int, width: int, pitch: int) -> None:
    for row in range(rows):  # a copy takes a while: each row is an operation of its own
        stream.add(lambda row=row: ctypes.memmove(target + row * width, source + row * pitch, width) and None)


def _row_copy(rows: int, width: int, pitch: int):
    return lambda stream, target, source: _copy_rows(stream, target, source, rows, width, pitch)


fake_driver = SimpleNamespace(write_flag=_write_flag, await_flag=_await_flag, row_copy=_row_copy)


def run_in_some_order(streams: list[Stream], random: Random) -> None:
    """Run all queues to their end, a few ready operations of one stream at a time. Fails if none is ready."""
    while unfinished := [s for s in streams if s.done < len(s.queue)]:
        ready = [s for s in unfinished if s.queue[s.done][0]()]
        assert ready, "deadlock"
        stream = random.choice(ready)
        for _ in range(random.randint(1, 6)):
            if stream.done == len(stream.queue) or not stream.queue[stream.done][0]():
                break
            stream.queue[stream.done][1]()
            stream.done += 1
