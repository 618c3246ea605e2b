"""Pacing slows a rank to its percentage: exactly by a simulated clock, closely by the real one."""

import time
from itertools import pairwise

import pytest

from heteroring.throttle import THROTTLES, throttle_type
from heteroring.throttle.base import Throttle
from heteroring.throttle.pacing import NAP_SECONDS, Pacing, sleep_until


class Clock:
    """A clock that advances in sleep, slightly too far as with a real kernel, and by a tick at each reading."""

    def __init__(self, late: float = 0.0, tick: float = 1e-6):
        self.now, self.late, self.tick = 0.0, late, tick
        self.slept = []

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds + self.late

    def compute(self, seconds: float) -> str:
        self.now += seconds
        return "result"


@pytest.mark.parametrize("percentage", range(10, 101, 10))
@pytest.mark.parametrize("seconds", [0.0002, 0.003, 0.5])
def test_achieved_speed_is_the_nominal_one(percentage, seconds):
    clock = Clock(late=0.0001)
    pacing = Pacing(percentage, clock=clock, busy=clock, sleep=clock.sleep)
    paced = pacing.wrap(clock.compute)
    before = clock.now
    for _ in range(20):
        assert paced(seconds) == "result"
    assert 20 * seconds / (clock.now - before) == pytest.approx(percentage / 100, rel=0.05)
    assert pacing.report()["achieved_percentage"] == pytest.approx(percentage, rel=0.05)


def test_time_for_which_the_thread_was_put_off_is_not_lengthened():
    clock = Clock()
    busy = iter((10.0, 10.5))

    def put_off() -> None:
        clock.now += 2.0

    Pacing(25, clock=clock, busy=lambda: next(busy), sleep=clock.sleep).wrap(put_off)()
    assert sum(clock.slept) == pytest.approx(3 * 0.5, abs=0.001)


def test_waiting_is_not_computing():
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds)

    Pacing(10, sleep=sleep).wrap(time.sleep)(0.2)
    assert sum(slept) < 0.2  # 1.8 if the wait were lengthened


def test_at_full_speed_nothing_sleeps():
    clock = Clock()
    Pacing(100, clock=clock, busy=clock, sleep=clock.sleep).wrap(clock.compute)(1.0)
    assert clock.slept == []


def test_the_report_tells_of_sleep_that_came_late():
    clock = Clock(late=0.1)
    pacing = Pacing(50, clock=clock, busy=clock, sleep=clock.sleep)
    pacing.wrap(clock.compute)(0.1)
    assert pacing.report()["achieved_percentage"] == pytest.approx(100 / 3, rel=0.01)


def test_a_long_idle_time_is_spent_in_naps_and_is_no_longer_for_it():
    clock, seen = Clock(late=0.0001), []
    pacing = Pacing(1, clock=clock, busy=clock, sleep=clock.sleep)
    pacing.while_idle = lambda: seen.append(clock.now)
    pacing.wrap(clock.compute)(2.0)
    assert clock.now == pytest.approx(200.0, abs=0.001)
    assert len(seen) == pytest.approx(198 / NAP_SECONDS, rel=0.05)
    assert max(after - before for before, after in pairwise([2.0, *seen])) < 2 * NAP_SECONDS


def test_there_is_nothing_to_report_before_the_first_call():
    assert Pacing(50).report() == {}


def test_an_exception_of_the_function_passes_through():
    with pytest.raises(ZeroDivisionError):
        Pacing(50).wrap(lambda: 1 / 0)()


def test_sleep_never_ends_early_on_the_real_clock():
    for wait in (0.0, 0.0001, 0.002):
        deadline = time.perf_counter() + wait
        sleep_until(deadline)
        assert time.perf_counter() >= deadline


def test_a_past_deadline_costs_nothing():
    clock = Clock()
    clock.now = 5.0
    sleep_until(4.0, clock, clock.sleep)
    assert clock.slept == []


@pytest.mark.parametrize("percentage", [0, 101, -5, 50.0, "50", True])
def test_percentage_must_be_an_integer_from_1_to_100(percentage):
    with pytest.raises(ValueError, match=r"not an integer from 1 to 100"):
        Pacing(percentage)


def test_throttles_have_the_names_they_are_found_by():
    assert {throttle_type(name).name for name in THROTTLES} == set(THROTTLES)
    with pytest.raises(ValueError, match="throttle 'magic' is unknown: choose one of none, pacing"):
        throttle_type("magic")


def test_no_throttle_leaves_functions_alone_and_refuses_to_slow():
    assert Throttle(100).wrap(time.sleep) is time.sleep
    with pytest.raises(ValueError, match="percentage 50 needs a throttle"):
        Throttle(50)
