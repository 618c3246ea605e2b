"""The throttle `neighbour`: its process computes while it is told to, rests otherwise, and ends with the rank's."""

import os
import shutil
import time

import pytest

from heteroring.throttle import throttle_type

pytestmark = pytest.mark.ranks


def seconds_of(pid):
    """Processor time of a process so far."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def settles(neighbour, computing):
    """Whether the process comes to compute, or to rest, within a minute: a busy machine may be slow to show it."""
    for _ in range(200):
        before = seconds_of(neighbour._process.pid)
        time.sleep(0.3)
        if (seconds_of(neighbour._process.pid) - before > 0.03) == computing:
            return True
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_its_process_computes_rests_and_ends(monkeypatch):
    neighbour = throttle_type("neighbour")(100)
    neighbour._start_on("cpu", 64)
    for percentage in (100, 50, 100, 50):
        neighbour.set(percentage)
        assert settles(neighbour, computing=percentage < 100)
    neighbour._process.stdin.close()  # as it is when the rank's process is gone
    assert neighbour._process.wait(60) == 0
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="its process ended with exit code 1"):
        throttle_type("neighbour")(100)._start_on("cpu")
