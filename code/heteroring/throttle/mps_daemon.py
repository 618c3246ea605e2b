"""An MPS control daemon of our own: started for the ranks, gone with them, and never anybody else's."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
_ALIVE = "get_default_active_thread_percentage"  # any question
START_SECONDS = 10.0
QUIT_SECONDS = 5.0


class MpsUnavailable(ValueError):
    """MPS cannot be used on this machine, and why."""


@contextmanager
def mps_daemon() -> Iterator[Mapping[str, str]]:
    """A daemon for as long as the block runs: the variables with which a CUDA program runs under it.

    This process does not get them: one that starts CUDA with them is bound to the daemon, and cannot use a GPU any more
    when that has gone. Where the environment names a daemon by CUDA_MPS_PIPE_DIRECTORY, that one serves and is left as
    it is; it must answer, for without it CUDA programs run as if there were no limit. Otherwise one is started with
    pipes and logs in a temporary folder, and ends with the block, together with its servers: also if the block raises,
    and also if a client was killed and the servers do not notice.

    Raises MpsUnavailable if no daemon can be started, or the one that the environment names does not answer.
    """
    if named := os.environ.get(PIPES):
        # Whoever has the pipes of a daemon, as in a container, need not have the program that asks it.
        if shutil.which(CONTROL) is not None and _ask(_ALIVE, {}) is None:
            raise MpsUnavailable(
                f"throttle 'mps': {PIPES} names {named}, where no daemon answers: start one there, or unset it"
            )
        yield {}
        return
    # Sockets are made in this folder, and their names may have 107 characters: TMPDIR can be too deep for that.
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ours = {PIPES: f"{folder}/pipe", LOGS: f"{folder}/log"}
        for path in ours.values():
            os.mkdir(path)
        daemon = _start(folder, ours)
        try:
            yield ours
        finally:
            _stop(daemon, ours)


def _start(folder: str, ours: Mapping[str, str]) -> subprocess.Popen:
    if shutil.which(CONTROL) is None:
        raise MpsUnavailable(f"throttle 'mps' needs the program {CONTROL}, which is not on PATH{_INSTEAD}")
    output = Path(folder, "output")
    with output.open("wb") as file:
        # In a session of its own, Ctrl-C in a terminal reaches us alone, and we end it.
        daemon = subprocess.Popen(
            [CONTROL, "-f"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | ours,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    deadline = time.monotonic() + START_SECONDS
    while daemon.poll() is None and time.monotonic() < deadline:
        if _ask(_ALIVE, ours) is not None:
            return daemon
        time.sleep(0.05)
    state = "does not answer" if daemon.poll() is None else f"ended with exit code {daemon.returncode}"
    _stop(daemon, ours)
    said = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    reason = f": {said[-1]}" if said else ""
    raise MpsUnavailable(f"throttle 'mps': {CONTROL} {state}{reason}{_INSTEAD}")


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is killed and cannot."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


_INSTEAD = "; --throttle green limits multiprocessors without it"


def _ask(command: str, ours: Mapping[str, str]) -> str | None:
    """The daemon's answer to one command, or None if it has none."""
    try:
        done = subprocess.run(
            [CONTROL],
            input=f"{command}\n",
            env=os.environ | ours,
            capture_output=True,
            text=True,
            timeout=QUIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _stop(daemon: subprocess.Popen, ours: Mapping[str, str]) -> None:
    """End the daemon and its servers: as they wish to end, and if they do not, by force."""
    if daemon.poll() is None:
        _ask(f"quit -t {QUIT_SECONDS:.0f}", ours)
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(QUIT_SECONDS)
    deadline = time.monotonic() + QUIT_SECONDS
    while (left := _processes(ours[PIPES])) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.poll()  # a child that has ended stays in the table until it is asked for
        time.sleep(0.02)
    daemon.wait()


def _processes(pipes: str) -> list[int]:
    """MPS processes, control daemon and servers, that were started with our folder of pipes."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            is_mps = path.name.isdigit() and (path / "comm").read_bytes().startswith(b"nvidia-cuda-mps")
            if is_mps and f"{PIPES}={pipes}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found
