"""A private MPS control daemon, started for the ranks and ended with them."""

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
_ALIVE = "get_default_active_thread_percentage"  # any query, to see that the daemon answers
START_SECONDS = 10.0
QUIT_SECONDS = 5.0


class MpsUnavailable(ValueError):
    """MPS cannot be used on this machine; the message says why."""


@contextmanager
def mps_daemon() -> Iterator[Mapping[str, str]]:
    """Run a daemon within the context; yields the environment variables with which a CUDA program runs under it.

    They are not set in this process: a process that starts CUDA with them is bound to the daemon, and cannot use a GPU
    after the daemon has ended. Where the environment names a daemon by CUDA_MPS_PIPE_DIRECTORY, that one is used and
    left running; it must answer, because without it CUDA programs run without a limit. Otherwise a daemon is started
    with pipes and logs in a temporary folder. It ends with the context, together with its servers, also if the context
    raises, and also if a client was killed and the servers do not notice.

    Raises MpsUnavailable if no daemon can be started, or if the one that the environment names does not answer.
    """
    if named := os.environ.get(PIPES):
        # A process that can use a daemon's pipes, as in a container, may lack the program that queries the daemon.
        if shutil.which(CONTROL) is not None and _ask(_ALIVE, {}) is None:
            raise MpsUnavailable(
                f"throttle 'mps': {PIPES} names {named}, where no daemon answers: start one there, or unset it"
            )
        yield {}
        return
    # Not in TMPDIR: sockets lie in this folder, and their paths are limited to 107 characters.
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
        # In a session of its own, so that Ctrl-C in a terminal reaches this process only, which then ends the daemon.
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
    """Have the kernel end this process when its parent is killed and cannot end it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


_INSTEAD = "; --throttle green limits SMs without it"


def _ask(command: str, ours: Mapping[str, str]) -> str | None:
    """The daemon's answer to one command, or None if it does not answer."""
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
    """Ask the daemon and its servers to quit, and kill what is left after QUIT_SECONDS."""
    if daemon.poll() is None:
        _ask(f"quit -t {QUIT_SECONDS:.0f}", ours)
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(QUIT_SECONDS)
    deadline = time.monotonic() + QUIT_SECONDS
    while (left := _processes(ours[PIPES])) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.poll()  # reap it: a child that has ended stays in the process table until then
        time.sleep(0.02)
    daemon.wait()


def _processes(pipes: str) -> list[int]:
    """Process ids of the control daemon and the servers that were started with the folder `pipes`."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            is_mps = path.name.isdigit() and (path / "comm").read_bytes().startswith(b"nvidia-cuda-mps")
            if is_mps and f"{PIPES}={pipes}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found
