"""Measurements that are killed, filled up or cut off leave no process and no half-written file, and keep older ones."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from forked_commands import Command
from namespaces import NO_LOOPBACK, within
from tree import ROOT, processes, ranks_of

pytestmark = pytest.mark.ranks

CODE = ROOT / "code"
SMALL = ("--percentages", "100", "--seq-lens", "8", "--strategies", "zigzag/even", "--repetitions", "1")
LONG = ("--percentages", "100,1", "--seq-lens", "1024", "--strategies", "zigzag/even", "--repetitions", "1000")
# Most seconds from the incident to the end.
END_SECONDS = 20.0
PATIENCE = 300.0


@pytest.fixture
def older(tmp_path) -> dict[str, str]:
    """A finished measurement in the folder `out`: names and contents of its files."""
    (tmp_path / "out").mkdir()
    found = {"rows.csv": "older rows", "rows.json": "older record"}
    for name, text in found.items():
        (tmp_path / "out" / name).write_text(text)
    return found


@contextmanager
def benching(tmp_path, *words, before=()):
    """`heteroring bench` into the folder `out`, as the leader of a session; asserts that no process of it remains."""
    words = ["bench", *words, "--output", tmp_path / "out" / "rows.csv"]
    if before:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "heteroring", *words],
            env=os.environ | {"PYTHONPATH": str(CODE), "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    else:
        process = Command(*words, env={"TMPDIR": str(tmp_path)})
    try:
        yield process
    finally:
        left = processes(process.pid) if process.poll() is not None else None
        for pid in processes(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert left == {}
    assert list(tmp_path.glob("heteroring-*")) == []


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def in_the_ring(process, tmp_path) -> list[int]:
    """The ranks, once both of them compute."""
    deadline = time.monotonic() + PATIENCE
    while len(list(tmp_path.glob("heteroring-*/rank*.stack"))) < 2 or len(ranks_of(process.pid)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1.0)
    return ranks_of(process.pid)


def test_a_rank_that_is_killed_mid_ring(tmp_path, older):
    with benching(tmp_path, *LONG) as process:
        os.kill(in_the_ring(process, tmp_path)[-1], signal.SIGKILL)
        _, said = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 1
    assert "heteroring: error: rank 1 was ended by SIGKILL" in said
    assert contents(tmp_path / "out") == older


def test_a_full_disk(tmp_path):
    """A disk of 64 KiB with one free page: there is room for the rows, but not for their provenance."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    kept.mkdir()
    mounts = f"mount -t tmpfs -o size=64k tmpfs {out}; echo older > {out}/rows.csv"
    fills = f"head -c {65536 - 2 * 4096} /dev/zero > {out}/filler; trap 'cp {out}/* {kept}' EXIT"
    before = within("--mount", script=f'{mounts}; {fills}; "$@"; exit')
    for path in kept.iterdir():
        path.unlink()
    with benching(tmp_path, *SMALL, before=before) as process:
        table, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, said
    assert "No space left on device: the 2 rows that were measured" in said
    assert "of bound" in table
    assert sorted(contents(kept)) == ["filler", "rows.csv"]
    assert contents(kept)["rows.csv"] == "older\n"


def test_no_loopback(tmp_path, older):
    with benching(tmp_path, *SMALL, before=within(*NO_LOOPBACK)) as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert said.startswith("heteroring: error: ranks cannot meet on this machine: localhost cannot be reached (")
    assert said.count("\n") == 1
    assert contents(tmp_path / "out") == older
