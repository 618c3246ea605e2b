"""The watchdog finds ranks that stop or die, and leaves none alive; here with processes that import no torch."""

import os
import signal
import time
from multiprocessing import connection, get_context

import pytest

from heteroring.launch import heartbeat, watchdog
from heteroring.launch.stack_dumps import Stacks
from heteroring.launch.watchdog import Watchdog

pytestmark = pytest.mark.ranks

# Seconds, however busy the machine is.
PATIENCE = 60.0


def become_rank(folder, rank, task):
    board = heartbeat.Board(folder / "board", 2)
    with Stacks(folder).ready(rank):
        heartbeat.join(board, rank)
        while any(beat.state == heartbeat.STARTING for beat in board.read()):
            time.sleep(0.01)
        task(rank)


def watched(folder, task, hang_timeout):
    """The watchdog and the stacks of two ranks that did `task(rank)`, and how they ended."""
    dog = Watchdog(heartbeat.Board(folder / "board", 2), hang_timeout, Stacks(folder))
    with dog:
        ranks = [get_context("spawn").Process(target=become_rank, args=(folder, rank, task)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            assert connection.wait([process.sentinel], PATIENCE)
    for process in ranks:
        process.join()
    return dog, Stacks(folder), [process.exitcode for process in ranks]


def stop_the_first(rank):
    """The other has been silent for longer."""
    time.sleep(0.2)
    if rank == 0:
        heartbeat.beat()
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)


def test_a_stopped_rank_counts_as_hanging(tmp_path):
    dog, stacks, codes = watched(tmp_path, stop_the_first, 1.5)
    assert (dog.hung, dog.killed) == (0, None)
    assert 1.5 < dog.silent_for < PATIENCE
    assert stacks.answer(0)[0].endswith(" in stop_the_first")
    assert codes == [-signal.SIGKILL] * 2


def stop_the_second_and_kill_the_first(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_rank_does_not_outlive_one_that_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.5)
    dog, _, codes = watched(tmp_path, stop_the_second_and_kill_the_first, PATIENCE)
    assert (dog.hung, dog.killed, dog.signal) == (None, 0, signal.SIGTERM)
    assert codes == [-signal.SIGTERM, -signal.SIGKILL]
