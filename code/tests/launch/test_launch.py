"""Launched ranks return their results and end together, and the error names the root cause, however a rank ends."""

import gc
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from forked_commands import Command
from heteroring.launch import heartbeat
from heteroring.launch.errors import Interrupted, RankError
from heteroring.launch.launch import _CONFIGURABLE, check_ranks, launch
from heteroring.launch.root_cause import Accounts, blame
from heteroring.launch.stack_dumps import Stacks
from heteroring.launch.watchdog import Watchdog
from heteroring.throttle.pacing import Pacing

# Most seconds until the end, from when a rank is known to have died or to hang.
END_SECONDS = 10.0
# Seconds for which a rank may be silent in a run that is stopped as a whole.
HANG_SECONDS = 3.0


def run(task, *args, percentages=(100, 100), **options):
    return launch(task, *args, device_kind="cpu", throttle="pacing", percentages=percentages, **options)


def leave_pid(folder):
    Path(folder, f"{os.getpid()}.pid").touch()


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def assert_all_gone(folder):
    pids = [int(path.stem) for path in Path(folder).glob("*.pid")]
    assert len(pids) == 2
    assert not [pid for pid in pids if is_alive(pid)]


def meet(rank, folder, word):
    """Rank 0 waits for rank 1, which works for longer than a rank may be silent, and then is slowed for as long."""
    leave_pid(folder)
    total = torch.tensor([10.0**rank.rank])
    dist.all_reduce(total)
    for _ in range(28 * (rank.rank == 1)):
        time.sleep(0.1)
        heartbeat.beat()
    dist.barrier()
    heartbeat.advance(3)
    deadline = time.thread_time() + 0.056 * (rank.rank == 1)

    def compute():
        while time.thread_time() < deadline:
            pass

    rank.throttle.wrap(compute)()
    dist.barrier()
    throttled = isinstance(rank.throttle, Pacing) and rank.throttle.percentage
    found = rank.rank, rank.world_size, word, total.item(), torch.get_num_threads(), throttled
    return *found, gc.get_freeze_count() > len(sys.modules)  # imports are exempt from garbage collection


def raise_error(rank, folder, culprit):
    leave_pid(folder)
    if rank.rank == culprit:
        raise ZeroDivisionError("the answer of rank 1")
    dist.barrier()


def sleep_forever(rank, folder, culprit):
    """The others write their last heartbeat before the culprit does, and wait in a collective."""
    leave_pid(folder)
    dist.barrier()
    if rank.rank == culprit:
        time.sleep(0.2)
        heartbeat.beat()
        Path(folder, "since").write_text(str(time.monotonic()))
        time.sleep(1000)
    heartbeat.beat()
    dist.barrier()


def seconds_since(folder):
    return time.monotonic() - float(Path(folder, "since").read_text())


@pytest.mark.ranks
def test_ranks_return_in_order_and_report_progress_and_neither_waiting_nor_being_slowed_is_hanging(tmp_path):
    """At 2 %, 0.056 seconds become 2.8."""
    seen = []
    options = {"percentages": (100, 2), "hang_timeout": 2.5, "on_progress": seen.append}
    results = run(meet, tmp_path, "hello", **options)
    assert results == [(0, 2, "hello", 11.0, 1, 100, True), (1, 2, "hello", 11.0, 1, 2, True)]
    assert seen == sorted(seen)
    assert set(seen) == {0, 3}
    assert_all_gone(tmp_path)


@pytest.mark.ranks
def test_a_rank_that_raises_is_named_with_its_traceback(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)]
    with pytest.raises(RankError) as caught:
        run(raise_error, tmp_path, 1)
    assert caught.value.rank == 1
    message = str(caught.value)
    assert message.startswith("rank 1 raised:")
    assert "in raise_error" in message
    assert "ZeroDivisionError: the answer of rank 1" in message
    assert "_run_rank" not in message
    assert_all_gone(tmp_path)
    # Nothing else is left behind either.
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)] == handlers
    assert list(scratch.glob("heteroring*")) == list(scratch.glob("torchelastic*")) == []


@pytest.mark.ranks
def test_a_rank_that_hangs_is_named_with_its_stack(tmp_path):
    with pytest.raises(RankError) as caught:
        run(sleep_forever, tmp_path, 1, hang_timeout=2.0)
    assert seconds_since(tmp_path) < 2.0 + END_SECONDS
    assert caught.value.rank == 1
    first, others = str(caught.value).split("rank 0 was at")
    assert re.match(r"rank 1 hangs: no sign of life for [12]\.\d s\n", first)
    assert "in sleep_forever" in first
    assert "barrier" not in first
    assert "in barrier" in others
    assert_all_gone(tmp_path)


@pytest.mark.parametrize(
    ("beats", "hangs"),
    [
        ([(heartbeat.RUNNING, 7.0), (heartbeat.DONE, 0.0)], False),
        ([(heartbeat.RUNNING, 7.0), (heartbeat.RUNNING, 0.0)], False),
        ([(heartbeat.RUNNING, 7.0), (heartbeat.DONE, 5.0)], True),
        ([(heartbeat.RUNNING, 7.0), (heartbeat.RUNNING, 5.0)], True),
        ([(heartbeat.RUNNING, 7.0), (heartbeat.STARTING, 5.0)], False),
        ([(heartbeat.RUNNING, 0.0), (heartbeat.STARTING, 125.0)], True),
    ],
    ids=["waited", "waits", "alone", "both", "starts", "never starts"],
)
def test_silence_counts_from_the_last_beat_of_whoever_was_waited_for(tmp_path, monkeypatch, beats, hangs):
    """Rank 0 has waited 7 seconds for rank 1, in the last barrier for instance; it may be silent for 4."""
    ended = []
    dog = Watchdog(heartbeat.Board(tmp_path / "board", 2), 4.0, Stacks(tmp_path))
    monkeypatch.setattr(dog, "_end_hang", lambda beats, silence: ended.append(silence))
    dog._look_for_silence([heartbeat.Beat(os.getpid(), state, 0, 1000.0 - ago) for state, ago in beats], 1000.0)
    assert bool(ended) == hangs


@pytest.mark.parametrize(
    ("seen", "how"),
    [
        ({"killed": 1, "signal": signal.SIGKILL}, "was ended by SIGKILL"),
        ({"failures": {1: -9}}, "was ended by SIGKILL"),
        ({"failures": {1: 3}}, "ended with exit code 3"),
        ({"lost": [1]}, "ended without an error message"),
    ],
    ids=["by the watchdog", "by the launcher", "exit by the launcher", "by a peer"],
)
def test_whoever_saw_it_a_rank_without_a_word_is_blamed(tmp_path, monkeypatch, seen, how):
    """Rank 0 lost its connection and raised before anything else noticed."""
    monkeypatch.setattr("heteroring.launch.root_cause.lost_peers", lambda: seen.get("lost", []))
    accounts = Accounts(tmp_path)
    accounts.write(0, ConnectionError("closed by peer"), beyond="")
    failures = {rank: SimpleNamespace(exitcode=code) for rank, code in seen.get("failures", {0: 1}).items()}
    watchdog = SimpleNamespace(hung=None, killed=None, signal=None, world_size=2)
    vars(watchdog).update({key: value for key, value in seen.items() if key in ("killed", "signal")})
    error = blame(SimpleNamespace(failures=failures), watchdog, accounts, Stacks(tmp_path))
    assert error.rank == 1
    assert str(error).startswith(f"rank 1 {how}\nrank 0 then raised:\n")
    assert "ConnectionError: closed by peer" in str(error)


def die_when_done(rank, folder):
    leave_pid(folder)
    if rank.rank == 1:
        # After the result has been handed over, while the launcher still waits for rank 0's.
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
    dist.barrier()
    dist.destroy_process_group = dist.barrier = lambda: time.sleep(2.0 * (rank.rank == 0))


@pytest.mark.ranks
def test_a_rank_that_dies_after_its_work_is_done_is_named(tmp_path):
    with pytest.raises(RankError) as caught:
        run(die_when_done, tmp_path)
    assert caught.value.rank == 1
    assert "rank 1 was ended by SIGKILL" in str(caught.value)
    assert_all_gone(tmp_path)


@contextmanager
def parent_of_ranks(tmp_path, function, ignored=()):
    """A process group in which `function` of this file runs, once both ranks are ready; it is gone afterwards."""
    parent = Command(tmp_path, function=function, env={"TMPDIR": str(tmp_path)}, ignored=ignored)
    try:
        wait_for(tmp_path, "ready", parent)
        yield parent
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait()


def wait_for(folder, word, parent):
    """Until each rank has written a file of that name."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob(f"{word}*"))) < 2:
        assert parent.poll() is None, parent.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def beat_on(rank, folder):
    leave_pid(folder)
    Path(folder, f"ready{rank.rank}").touch()
    while True:
        time.sleep(0.1)
        heartbeat.beat()
        if Path(folder, "go").exists():
            dist.barrier()
            Path(folder, f"gone on{rank.rank}").touch()


def launch_beating(folder):
    try:
        run(beat_on, folder, hang_timeout=HANG_SECONDS)
    except Interrupted as error:
        sys.exit(error.exit_code)


@pytest.mark.skipif("signals_to_handle" not in _CONFIGURABLE, reason="this torch heeds every signal")
@pytest.mark.ranks
def test_neither_what_a_run_was_started_to_ignore_nor_a_stop_ends_it_but_being_told_to(tmp_path):
    """As with nohup, or in the background of a shell without job control; nor does Ctrl-Z, and fg much later."""
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    with parent_of_ranks(tmp_path, launch_beating, ignored=signals) as parent:
        for signum in signals:
            os.killpg(parent.pid, signum)
        time.sleep(0.5)
        assert parent.poll() is None
        os.killpg(parent.pid, signal.SIGSTOP)
        time.sleep(HANG_SECONDS + 0.5)
        os.killpg(parent.pid, signal.SIGCONT)
        time.sleep(1.0)
        (tmp_path / "go").touch()
        wait_for(tmp_path, "gone on", parent)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(END_SECONDS) == 128 + signal.SIGTERM
    assert_all_gone(tmp_path)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (("cpu", "pacing", (100, 0)), "percentage 0 is not"),
        (("cpu", "pacing", ()), "percentages is empty"),
        (("cpu", "none", (100, 50)), "percentage 50 needs a throttle"),
        (("tpu", "none", (100,)), "device kind 'tpu' cannot be measured here: choose one of cpu, gpu"),
        (("cpu", "warp", (100,)), "throttle 'warp' is unknown"),
        (("gpu", "pacing", (100, 50)), "throttle 'pacing' works on cpu, not on 'gpu'"),
    ],
)
def test_what_cannot_be_launched_is_refused_before_a_process_starts(monkeypatch, setting, complaint):
    monkeypatch.setattr("heteroring.launch.launch.elastic_launch", lambda *_: pytest.fail("a process was started"))
    device_kind, throttle, percentages = setting
    with pytest.raises(ValueError, match=complaint):
        launch(meet, "", device_kind=device_kind, throttle=throttle, percentages=percentages)


@pytest.mark.parametrize("ranks", [1, 2])
def test_gpu_platform_needs_a_gpu_for_each_rank(monkeypatch, ranks):
    monkeypatch.setattr("torch.cuda.device_count", lambda: ranks - 1)
    with pytest.raises(
        ValueError, match=f"device kind 'gpu' needs a CUDA GPU for each rank, {ranks}, and this machine has"
    ):
        check_ranks("gpu", "none", (100,) * ranks)
