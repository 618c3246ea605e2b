"""Snakemake's lock is removed if a killed run left it, and kept if its run is alive."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workflow.preflight.stale_lock import drop_stale_lock, take_ownership

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc for processes")


@pytest.fixture
def state(tmp_path) -> Path:
    """Snakemake's folder with a lock in it."""
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "0.output.lock").write_text("data/cpu/bench/pct-050.csv\n")
    return tmp_path


def sign(state: Path, **changes) -> None:
    take_ownership(state)
    owner = json.loads((state / "owner.json").read_text())
    (state / "owner.json").write_text(json.dumps(owner | changes))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_lock_of_a_living_run_stays(state):
    take_ownership(state)
    assert not drop_stale_lock(state)
    assert (state / "locks" / "0.output.lock").exists()


@pytest.mark.ranks
def test_lock_of_a_killed_run_goes(state):
    sign(state, pid=dead_process())
    assert drop_stale_lock(state)
    assert not (state / "locks").exists()


def test_lock_whose_pid_was_given_to_another_process_goes(state):
    sign(state, start="1")
    assert drop_stale_lock(state)


def test_lock_from_before_a_reboot_goes(state):
    sign(state, boot="another boot")
    assert drop_stale_lock(state)


@pytest.mark.ranks
def test_lock_of_another_machine_stays(state):
    sign(state, host="another.example", pid=dead_process())
    assert not drop_stale_lock(state)


@pytest.mark.ranks
def test_lock_taken_after_the_last_signature_stays(state):
    sign(state, pid=dead_process())
    later = time.time() + 60
    os.utime(state / "locks", (later, later))
    assert not drop_stale_lock(state)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_unreadable_signature_leaves_the_lock(state, text):
    (state / "owner.json").write_text(text)
    os.utime(state / "locks", (0, 0))
    assert not drop_stale_lock(state)
    assert (state / "locks").exists()


def test_nothing_to_drop(tmp_path):
    assert not drop_stale_lock(tmp_path / "absent")
    take_ownership(tmp_path)
    assert not drop_stale_lock(tmp_path)
