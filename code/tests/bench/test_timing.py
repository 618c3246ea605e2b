"""Timed calls start on all ranks together, and the device rests before the next call."""

import pytest

from heteroring.bench.profile import run as profile
from heteroring.bench.timing import Busy, Times, sustained_calls, timed
from heteroring.launch.device import Cuda


class Clock:
    """A Device whose time advances only in its methods, which are recorded."""

    def __init__(self):
        self.now, self.asked = 0.0, []

    def align(self, calls=1):
        self.asked.append("align")

    def meet(self):
        self.asked.append("meet")

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


def test_sustained_calls_follow_one_another_and_one_takes_their_mean():
    clock = Clock()
    busy = Busy(clock)
    work = busy.wrap(lambda: clock.compute(6.0))
    assert timed(work, busy, clock, "sustained", 4) == Times(6.0, 6.0)
    assert clock.asked == ["align", *["compute"] * 4, 24.0]


@pytest.mark.parametrize("condition", ["eager", "captured"])
def test_the_host_is_timed_until_its_device_is_done(monkeypatch, condition):
    """The device's clock advances by 6 ms in the call, the host's by 2 in it and by 5 until the device is done."""
    clock, host = Clock(), [0]
    monkeypatch.setattr("heteroring.bench.timing.time.perf_counter_ns", lambda: host[0])
    busy = Busy(clock)
    work = busy.wrap(lambda: clock.compute(6.0))

    def call():
        host[0] += 2_000_000
        work()

    def synchronize():
        host[0] += 5_000_000

    clock.synchronize = synchronize
    assert timed(call, busy, clock, condition) == Times(7.0, 0.0 if condition == "captured" else 6.0)
    assert clock.asked == ["meet", "compute", 7.0]


@pytest.mark.parametrize(("call_ms", "calls"), [(0.0, 32), (10.0, 32), (50.0, 20), (356.0, 4), (5000.0, 4)])
def test_short_calls_are_sustained_in_larger_number(call_ms, calls):
    assert sustained_calls(call_ms) == calls


def test_a_profile_rests_after_all_calls_of_a_repetition():
    clock = Clock()
    assert profile._time(lambda: clock.compute(4.0), 3, clock) == 4.0
    assert clock.asked == ["align", *["compute"] * 3, 12.0]


@pytest.mark.parametrize(("busy_ms", "rested"), [(0.0, 0.0), (4.0, 0.004), (400.0, 0.05)])
def test_a_gpu_rests_as_long_as_it_computed_but_not_for_ever(monkeypatch, busy_ms, rested):
    slept = []
    monkeypatch.setattr("heteroring.launch.device.time.sleep", slept.append)
    Cuda().rest(busy_ms)
    assert slept == [rested]
