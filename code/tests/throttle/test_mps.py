"""Start and end of a private MPS daemon, with a stand-in for NVIDIA's program on PATH, and the SMs that MPS leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from heteroring.throttle import throttle_type
from heteroring.throttle.mps import Mps, expected_sms
from heteroring.throttle.mps_daemon import LOGS, PIPES, MpsUnavailable, mps_daemon
from tree import ROOT

# Answers through a file in its folder of pipes, as the program does through a socket there. With -f it is the daemon
# and starts a server, which outlives it where the test asks for that.
CONTROL = """#!/usr/bin/env python3
import os, pathlib, signal, subprocess, sys, time
pipes = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
behaviour = os.environ.get("FAKE_MPS", "")
if sys.argv[1:] == ["-f"]:
    if behaviour == "refuse":
        sys.exit("Cannot find MPS control daemon: insufficient permission")
    server = subprocess.Popen([str(pathlib.Path(__file__).with_name("nvidia-cuda-mps-server"))])
    (pipes / "control").write_text(f"{os.getpid()} {server.pid}")
    while not (pipes / "quit").exists() or behaviour == "stubborn":
        time.sleep(0.01)
    if behaviour != "orphan":
        server.kill()
    sys.exit()
if not (pipes / "control").exists():
    sys.exit("no daemon")
command = sys.stdin.read().split()
if command[0] == "quit":
    (pipes / "quit").touch()
print("100.0")
"""
SERVER = "#!/usr/bin/env python3\nimport time\ntime.sleep(600)\n"


@pytest.fixture
def control(tmp_path, monkeypatch):
    """The stand-in, alone with this interpreter on PATH; its value is the folder it lies in."""
    for name, text in (("nvidia-cuda-mps-control", CONTROL), ("nvidia-cuda-mps-server", SERVER)):
        (tmp_path / name).write_text(text.replace("/usr/bin/env python3", sys.executable))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(PIPES, raising=False)
    monkeypatch.setattr("heteroring.throttle.mps_daemon.QUIT_SECONDS", 1.0)
    return tmp_path


def pids(pipes):
    return [int(pid) for pid in Path(pipes, "control").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.ranks
def test_a_private_daemon_runs_while_the_context_does(control):
    before = dict(os.environ)
    with mps_daemon() as variables:
        started, folder = pids(variables[PIPES]), Path(variables[PIPES]).parent
        assert len(variables[PIPES]) < 64
        assert Path(variables[LOGS]).is_dir()
        assert all(map(alive, started))
        assert dict(os.environ) == before
    assert not any(map(alive, started))
    assert not folder.exists()


@pytest.mark.ranks
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_ends_with_a_context_that_raises(control, error):
    started = []

    def fail(variables):
        started.extend(pids(variables[PIPES]))
        raise error

    with pytest.raises(error), mps_daemon() as variables:
        fail(variables)
    assert len(started) == 2
    assert not any(map(alive, started))


@pytest.mark.ranks
@pytest.mark.parametrize("behaviour", ["stubborn", "orphan"])
def test_what_does_not_end_itself_is_ended(control, monkeypatch, behaviour):
    monkeypatch.setenv("FAKE_MPS", behaviour)
    with mps_daemon() as variables:
        started = pids(variables[PIPES])
    assert not any(map(alive, started))


@pytest.mark.ranks
def test_a_daemon_that_was_killed_takes_its_server_along(control):
    with mps_daemon() as variables:
        started = pids(variables[PIPES])
        os.kill(started[0], signal.SIGKILL)
    assert not any(map(alive, started))


@pytest.mark.ranks
def test_ctrl_c_ends_the_daemon_of_a_whole_process(control, tmp_path):
    code = (
        "import time\n"
        "from heteroring.throttle.mps_daemon import mps_daemon\n"
        "with mps_daemon() as variables:\n"
        "    print(open(variables['CUDA_MPS_PIPE_DIRECTORY'] + '/control').read(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    started = [int(pid) for pid in process.stdout.readline().split()]
    assert len(started) == 2
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert not any(map(alive, started))


@pytest.mark.ranks
def test_a_daemon_that_the_environment_names_is_left_alone(control, tmp_path, monkeypatch):
    foreign = tmp_path / "pipe"
    foreign.mkdir()
    monkeypatch.setenv(PIPES, str(foreign))
    daemon = subprocess.Popen([tmp_path / "nvidia-cuda-mps-control", "-f"])
    try:
        while not (foreign / "control").exists():
            time.sleep(0.01)
        before = pids(foreign)
        with mps_daemon() as variables:
            assert variables == {}
        assert all(map(alive, before))
        assert not (foreign / "quit").exists()
        monkeypatch.delenv(PIPES)
        with mps_daemon() as variables:
            assert not set(pids(variables[PIPES])) & set(before)
        assert all(map(alive, before))
    finally:
        (foreign / "quit").touch()
        daemon.wait(10)


@pytest.mark.ranks
def test_a_named_daemon_that_does_not_answer_is_refused(control, tmp_path, monkeypatch):
    """Otherwise CUDA would run without a limit, and times would be recorded as those of a limited GPU."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.setenv(PIPES, str(gone))
    with pytest.raises(
        MpsUnavailable, match=rf"{PIPES} names {gone}, where no daemon answers: start one there, or unset"
    ):
        mps_daemon().__enter__()
    monkeypatch.setenv("PATH", "/nonexistent")
    with mps_daemon() as variables:
        assert variables == {}


def test_without_the_program_there_is_another_way(control, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MpsUnavailable, match=r"nvidia-cuda-mps-control, which is not on PATH; --throttle green"):
        mps_daemon().__enter__()


@pytest.mark.ranks
def test_a_refusal_is_passed_on(control, monkeypatch):
    monkeypatch.setenv("FAKE_MPS", "refuse")
    before = dict(os.environ)
    with pytest.raises(MpsUnavailable, match=r"exit code 1: .*insufficient permission; --throttle green"):
        mps_daemon().__enter__()
    assert dict(os.environ) == before


@pytest.mark.ranks
def test_a_session_leaves_the_environment_as_it_was(control):
    before = dict(os.environ)
    with Mps.session() as variables:
        assert alive(pids(variables[PIPES])[0])
        assert dict(os.environ) == before


@pytest.mark.parametrize(("percentage", "count"), [(100, 132), (50, 66), (20, 26), (10, 12), (1, 2)])
def test_what_mps_leaves_of_132_sms(percentage, count):
    assert expected_sms(132, percentage) == count


def test_the_percentage_is_set_before_cuda_starts():
    assert throttle_type("mps")(30).environment() == {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30"}


@pytest.mark.parametrize(("counts", "expected"), [("132 80", {"expected_multiprocessors": 40}), ("132", {}), ("", {})])
def test_a_rank_reports_what_it_has_and_what_it_asked_for(monkeypatch, counts, expected):
    """For its own device, the second one here; nothing is expected where the whole device's count is not known."""
    present = [SimpleNamespace(multi_processor_count=count) for count in (66, 38)]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", present.__getitem__)
    monkeypatch.setenv("HETERORING_MULTIPROCESSORS", counts)
    assert throttle_type("mps")(50).report() == {"multiprocessors": 38} | expected
