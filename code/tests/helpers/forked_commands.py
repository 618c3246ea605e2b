"""Processes that run a command or a function, forked from the server of pools of ranks, which has imported torch."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch.multiprocessing as mp

from heteroring.__main__ import main


def command_line(*words: object) -> None:
    """The command line, in this process."""
    sys.argv = ["heteroring", *map(str, words)]
    main()


class Command:
    """`function(*words)` as the leader of a session, to be used as a subprocess.Popen is: `heteroring WORDS`."""

    def __init__(
        self,
        *words: object,
        function: Callable[..., None] = command_line,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        ignored: Sequence[signal.Signals] = (),
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [Path(self._folder.name, name) for name in ("out", "err")]
        settings = (cwd or Path.cwd(), {**os.environ, **(env or {})}, ignored, self._texts)
        self._process = mp.get_context("forkserver").Process(target=_run, args=(function, words, *settings))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, "it has not ended"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Its stdout and stderr, once it has ended."""
        self.wait(timeout)
        out, err = (text.read_text() for text in self._texts)
        return out, err

    def said(self) -> str:
        """Its stderr so far."""
        return self._texts[1].read_text() if self._texts[1].exists() else ""

    def send_signal(self, signum: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(
    function: Callable[..., None],
    words: Sequence[object],
    cwd: Path,
    env: Mapping[str, str],
    ignored: Sequence[signal.Signals],
    texts: Sequence[Path],
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    for stream, text in enumerate(texts, 1):
        os.dup2(os.open(text, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # TMPDIR may be another
    sys.modules["__main__"] = ModuleType("__main__")  # not the tests', which ranks would then import
    function(*words)
