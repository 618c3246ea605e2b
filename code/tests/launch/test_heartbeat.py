"""Heartbeats are read whole, also while they are being written."""

import multiprocessing
import os
import time

import pytest

from heteroring.launch.heartbeat import RUNNING, STARTING, Board, _Pulse, beating, join


def write_without_pause(path, seconds):
    board = Board(path, 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for steps in range(1000):
            board.write(0, RUNNING, steps)


def test_a_new_board_holds_a_recent_start_for_every_rank(tmp_path):
    before = time.monotonic()
    beats = Board(tmp_path / "board", 3).read()
    assert [(beat.state, beat.steps) for beat in beats] == [(STARTING, 0)] * 3
    assert all(before - 1 < beat.at <= time.monotonic() for beat in beats)


def test_a_rank_writes_its_own_slot_only(tmp_path):
    board = Board(tmp_path / "board", 3)
    untouched = board.read()
    Board(tmp_path / "board", 3).write(1, RUNNING, 7)
    beats = board.read()
    assert (beats[0], beats[2]) == (untouched[0], untouched[2])
    assert (beats[1].pid, beats[1].state, beats[1].steps) == (os.getpid(), RUNNING, 7)
    assert 0 <= time.monotonic() - beats[1].at < 60


@pytest.mark.ranks
def test_no_read_sees_a_half_written_beat(tmp_path):
    board = Board(tmp_path / "board", 1)
    started = time.monotonic()
    writer = multiprocessing.get_context("spawn").Process(target=write_without_pause, args=(board.path, 0.5))
    writer.start()
    reads = 0
    while writer.is_alive():
        (beat,) = board.read()
        assert started - 1 < beat.at <= time.monotonic() + 1
        assert 0 <= beat.steps < 1000
        reads += 1
    writer.join()
    assert writer.exitcode == 0
    assert reads > 100


def test_a_function_that_beats_does_so_before_each_call(tmp_path, monkeypatch):
    monkeypatch.setattr("heteroring.launch.heartbeat._pulse", _Pulse())
    board = Board(tmp_path / "board", 1)
    join(board, 0)
    seen = []

    def compute(x, *, y):
        seen.append(board.read()[0].at)
        time.sleep(0.01)
        return x, y

    slow = beating(compute)
    assert [slow(1, y=2), slow(3, y=4)] == [(1, 2), (3, 4)]
    assert seen[1] - seen[0] > 0.009
    assert board.read()[0].at == seen[1]
