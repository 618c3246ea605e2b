"""Ctrl-C that is not lost while a command starts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_noted = False


@contextmanager
def noting_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt in the block, as ever, and be remembered.

    PyTorch, for one, drops every exception that comes up while its C code imports NumPy, and works without NumPy from
    there on. What the block then raises is a KeyboardInterrupt. Where Ctrl-C is ignored, it still is.
    """
    global _noted
    _noted = False
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not heeded or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    except Exception as error:
        if _noted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check_ctrl_c() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed and dropped: for a moment at which nothing has begun."""
    if _noted:
        raise KeyboardInterrupt


def _note(signum: int, frame: FrameType | None) -> None:
    global _noted
    _noted = True
    raise KeyboardInterrupt
