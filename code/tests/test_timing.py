"""What is timed starts on every rank together, and the device rests before the next call."""

import pytest

from heteroring.bench import profile
from heteroring.bench.device import Cuda
from heteroring.bench.timing import Busy, Times, timed


class Clock:
    """A Device whose time goes on only in what it is told to do; it notes what it is asked for."""

    def __init__(self):
        self.now, self.asked = 0.0, []

    def align(self, calls=1):
        self.asked.append("align")

    def mark(self):
        return self.now

    def synchronize(self):
        pass

    def elapsed_ms(self, start, stop):
        return stop - start

    def rest(self, busy_ms):
        self.asked.append(busy_ms)

    def compute(self, ms):
        self.asked.append("compute")
        self.now += ms


def test_a_call_is_timed_from_a_common_start_and_rested_from():
    clock = Clock()
    busy = Busy(clock)
    work = busy.wrap(lambda: clock.compute(7.0))

    def call():
        work()
        clock.now += 3.0  # waits for another rank

    assert timed(call, busy, clock) == Times(10.0, 7.0)
    assert timed(lambda: None, busy, clock) == Times(0.0, 0.0)
    assert clock.asked == ["align", "compute", 10.0, "align", 0.0]


def test_a_profile_rests_after_all_calls_of_a_repetition():
    clock = Clock()
    assert profile._time(lambda: clock.compute(4.0), 3, clock) == 4.0
    assert clock.asked == ["align", *["compute"] * 3, 12.0]


@pytest.mark.parametrize(("busy_ms", "rested"), [(0.0, 0.0), (4.0, 0.004), (400.0, 0.05)])
def test_a_gpu_rests_as_long_as_it_computed_but_not_for_ever(monkeypatch, busy_ms, rested):
    slept = []
    monkeypatch.setattr("heteroring.bench.device.time.sleep", slept.append)
    Cuda().rest(busy_ms)
    assert slept == [rested]
