"""The rule that gives a new token's KV to a rank."""

import random

import numpy as np
import pytest
import torch

pytest.importorskip("fms")

from heteroring.fms.cache import capacities, check_speeds, next_owner


@pytest.mark.parametrize(
    ("held", "speeds", "owner"),
    [
        ((5, 5), (1, 1), 0),
        ((6, 5), (1, 1), 1),
        ((6, 2), (4, 1), 0),  # 7/4 < 3
        ((59_000, 6_000), (1, 1), 1),
        ((0, 0, 0), (1, 2, 2), 1),
    ],
)
def test_the_rank_that_would_be_done_first_keeps_the_token(held, speeds, owner):
    assert next_owner(held, speeds) == owner


def test_the_slowest_step_is_the_least_possible():
    """However many tokens follow, no other way to spread them has a faster slowest rank."""
    draw = random.Random(0)
    for _ in range(200):
        held = [draw.randrange(12) for _ in range(2)]
        speeds = [draw.randint(1, 5) for _ in range(2)]
        new = draw.randrange(12)
        got = capacities(held, speeds, new)
        assert sum(got) == sum(held) + new
        assert all(after >= before for after, before in zip(got, held, strict=True))
        choices = [(held[0] + mine, held[1] + new - mine) for mine in range(new + 1)]
        slowest = [max(tokens / speed for tokens, speed in zip(choice, speeds, strict=True)) for choice in choices]
        assert max(tokens / speed for tokens, speed in zip(got, speeds, strict=True)) == min(slowest)


def test_speeds_are_equal_unless_told():
    assert check_speeds(None, 3) == (1.0, 1.0, 1.0)
    for given in ((3, 1), [np.float16(3), np.int8(1)], np.array([3, 1]), torch.tensor([3.0, 1.0])):
        assert check_speeds(given, 2) == (3.0, 1.0)


@pytest.mark.parametrize(
    "speeds",
    [(1,), (1, 0), (1, -2), (1, float("nan")), (1, float("inf")), "12", (1, True), {1, 2}, {1: 1, 2: 2}, (1, "2")],
    ids=str,
)
def test_speeds_that_cannot_be_are_refused(speeds):
    with pytest.raises(ValueError, match="2 ranks need 2 positive numbers"):
        check_speeds(speeds, 2)
