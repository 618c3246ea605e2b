"""Ctrl-C while a command starts or imports: one error line and exit code 130."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = "interrupted"


def quit_on_ctrl_c() -> None:
    """Have Ctrl-C end this process at once, while there is nothing to clean up yet. If Ctrl-C is ignored, it stays so.

    As an exception it would be shown with a traceback or lost: PyTorch, for one, swallows an exception raised while its
    C code imports NumPy, and works without NumPy from there on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def raise_on_ctrl_c() -> None:
    """Have Ctrl-C raise KeyboardInterrupt again, so that running work can clean up."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def ctrl_c_held() -> Iterator[None]:
    """Hold Ctrl-C back from this thread within the block, and from processes started there until they unblock it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quit(signum: int, frame: FrameType | None) -> NoReturn:
    try:
        os.write(2, f"heteroring: error: {INTERRUPTED}\n".encode())
    finally:
        os._exit(128 + signum)
