"""One measurement at a time: who comes second waits and says for whom, however the first one ends."""

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

from heteroring.launch import machine_lock
from heteroring.launch.launch import launch
from heteroring.launch.machine_lock import VARIABLE, holder

pytestmark = pytest.mark.ranks

PATIENCE = 300.0

HOLDS = """
import sys
from heteroring.launch.machine_lock import machine_lock
with machine_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path, monkeypatch) -> Path:
    """The file that this test and what it starts lock."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "lock"))
    return tmp_path / "lock"


@contextmanager
def start(*arguments, **options) -> Iterator[subprocess.Popen]:
    """A Python that ends with the block."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, *map(str, arguments)], text=True, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(holds) -> None:
    deadline = time.monotonic() + PATIENCE
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


def outlive(rank, folder):
    """As a rank does whose process the kernel does not end with its parent."""
    ctypes.CDLL(None).prctl(1, 0)
    Path(folder, "rank").write_text(str(os.getpid()))
    while not Path(folder, "enough").exists():
        time.sleep(0.05)
    os._exit(0)  # the launcher that others would be met by has gone


LAUNCHES = """
import sys
import test_machine_lock
if __name__ == "__main__":
    test_machine_lock.launch_one(sys.argv[1])
"""


def launch_one(folder):
    launch(outlive, folder, platform="cpu", throttle="pacing", percentages=(100,))


def test_a_rank_that_outlives_its_launcher_holds_it(lock, tmp_path):
    script = tmp_path / "launches.py"
    script.write_text(LAUNCHES)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with start(script, tmp_path, env=os.environ | {"PYTHONPATH": path}) as launcher:
        try:
            wait_until(lambda: (tmp_path / "rank").exists() or launcher.poll() is not None)
            assert launcher.poll() is None, launcher.stderr.read()
            launcher.kill()
            launcher.wait()
            assert holder().pid == launcher.pid
            assert "which has ended and left a rank behind" in str(holder())
        finally:
            (tmp_path / "enough").touch()
        wait_until(lambda: holder() is None)


def test_ctrl_c_ends_a_command_that_waits(lock, tmp_path):
    profile = ("profile", "--kinds", "matmul", "--sizes", "64", "--output", tmp_path / "rows.csv")
    with machine_lock.machine_lock(), start("-m", "heteroring", *profile) as command:
        said = command.stderr.readline()
        assert said.startswith(f"heteroring: waiting for process {os.getpid()}"), said + command.stderr.read()
        command.send_signal(signal.SIGINT)
        assert command.wait(PATIENCE) == 130
        assert command.stderr.read() == "heteroring: error: interrupted\n"
    assert not (tmp_path / "rows.csv").exists()


def test_bad_input_is_refused_without_waiting(monkeypatch):
    monkeypatch.setattr("heteroring.launch.launch.machine_lock", lambda: pytest.fail("it would wait"))
    with pytest.raises(ValueError, match="percentage 0 is not"):
        launch(outlive, "", platform="cpu", throttle="pacing", percentages=(0,))


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
