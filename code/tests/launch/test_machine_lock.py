"""The machine lock: a second measurement waits and names the first, however that ends."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forked_commands import Command
from heteroring.launch import machine_lock
from heteroring.launch.launch import launch
from heteroring.launch.machine_lock import VARIABLE, holder
from heteroring.procfs import has_ended

pytestmark = pytest.mark.ranks

PATIENCE = 300.0
# Seconds within which ranks end after their launcher.
END_SECONDS = 10.0

HOLDS = """
import sys
from heteroring.launch.machine_lock import machine_lock
with machine_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path, monkeypatch) -> Path:
    """The lock file of this test and its processes."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "lock"))
    return tmp_path / "lock"


@contextmanager
def start(*arguments, **options) -> Iterator[subprocess.Popen]:
    """A Python that ends with the context."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, *map(str, arguments)], text=True, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(holds, seconds=PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_second_waits_says_for_whom_and_goes_on(lock, tmp_path):
    with start("-c", HOLDS, "the first", cwd=tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with start("-c", HOLDS) as second:
            said = second.stderr.readline()
            assert said.startswith(f"heteroring: waiting for process {first.pid}, since 2")
            assert f" in {tmp_path}: -c 'the first' ({VARIABLE}={lock})" in said
            assert holder().pid == first.pid
            first.stdin.close()
            assert second.stdout.readline() == "held\n"
            assert holder().pid == second.pid
            second.stdin.close()
            assert second.stderr.read() == ""
    assert holder() is None


def test_a_killed_process_holds_nothing(lock):
    with start("-c", HOLDS) as first:
        assert first.stdout.readline() == "held\n"
        first.kill()
        first.wait()
        with machine_lock.machine_lock() as held:
            assert held is not None
            assert holder().pid == os.getpid()


def wait(rank, folder):
    """A task whose rank 1 is not ended by the kernel with its parent."""
    if rank.rank == 1:
        ctypes.CDLL(None).prctl(1, 0)
    Path(folder, f"{os.getpid()}.{rank.rank}").touch()
    while not Path(folder, "enough").exists():
        time.sleep(0.05)
    os._exit(0)  # the launcher, which keeps the rendezvous, has ended


def launch_two(folder):
    launch(wait, folder, device_kind="cpu", throttle="pacing", percentages=(100, 100))


def test_ranks_end_with_a_launcher_that_is_killed_and_one_that_outlives_it_holds_the_lock(lock, tmp_path):
    launcher = Command(tmp_path, function=launch_two)
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.[01]"))) == 2 or launcher.poll() is not None)
        assert launcher.poll() is None, launcher.communicate()
        launcher.kill()
        launcher.wait()
        (first,), (second,) = ([int(path.stem) for path in tmp_path.glob(f"*.{rank}")] for rank in range(2))
        wait_until(lambda: has_ended(first), END_SECONDS)
        assert not has_ended(second)
        assert holder().pid == launcher.pid
        assert "which has ended and left a rank behind" in str(holder())
    finally:
        launcher.kill()
        (tmp_path / "enough").touch()
    wait_until(lambda: holder() is None)


def test_ctrl_c_ends_a_command_that_waits(lock, tmp_path):
    profile = ("profile", "--kinds", "matmul", "--sizes", "64", "--output", tmp_path / "rows.csv")
    with machine_lock.machine_lock():
        command = Command(*profile)
        wait_until(lambda: command.said().endswith("\n") or command.poll() is not None)
        command.send_signal(signal.SIGINT)
        assert command.wait(PATIENCE) == 130
        waits, interrupted = command.said().splitlines()
        assert waits.startswith(f"heteroring: waiting for process {os.getpid()}")
        assert interrupted == "heteroring: error: interrupted"
    assert not (tmp_path / "rows.csv").exists()


def test_bad_input_is_refused_without_waiting(monkeypatch):
    monkeypatch.setattr("heteroring.launch.launch.machine_lock", lambda: pytest.fail("it would wait"))
    with pytest.raises(ValueError, match="percentage 0 is not"):
        launch(wait, "", device_kind="cpu", throttle="pacing", percentages=(0,))


def test_the_file_is_for_all_users(lock):
    before = os.umask(0o077)
    try:
        with machine_lock.machine_lock():
            assert lock.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_a_file_that_may_only_be_read_can_be_locked(lock, monkeypatch):
    lock.touch()
    opened = os.open

    def not_to_write(path, flags, *rest):
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", not_to_write)
    with machine_lock.machine_lock() as held:
        assert held is not None
        assert holder() == "another process, which has not said who it is"


def test_a_named_file_that_cannot_be_locked_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no" / "lock"))
    with pytest.raises(ValueError, match=f"{VARIABLE}: cannot lock {tmp_path}/no/lock: No such file"):
        machine_lock.machine_lock().__enter__()


def test_without_the_usual_file_it_goes_on_and_warns(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(machine_lock, "LOCK", tmp_path)
    with machine_lock.machine_lock() as held:
        assert held is None
    assert f"warning: cannot lock {tmp_path}: Is a directory" in capsys.readouterr().err


def test_nothing_is_locked_where_the_variable_is_empty(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    with machine_lock.machine_lock() as first, machine_lock.machine_lock() as second:
        assert first is second is None
    assert holder() is None
