"""Cached launches: the tensors that they keep alive, the arguments that they pass, and the device."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from heteroring.kernels import launch_cache as cache
from heteroring.kernels.launch_cache import BoundKernel, LaunchCache


@dataclass
class Descriptor:
    """Stands in for one of Triton's descriptors."""

    base: object
    tile: int


def test_a_launch_is_prepared_once_and_so_is_the_lack_of_one():
    kept, made = LaunchCache(), []

    def make(launch):
        made.append(launch)
        return launch

    for _ in range(2):
        assert kept.kept("covered", lambda: make("launch")) == "launch"
        assert kept.kept("not covered", lambda: make(None)) is None
    assert made == ["launch", None]


def test_there_are_no_more_than_so_many(monkeypatch):
    monkeypatch.setattr(cache, "MOST_LAUNCHES", 3)
    kept = LaunchCache()
    for key in range(10):
        assert kept.kept(key, lambda key=key: -key) == -key
        assert len(kept) <= 3


@pytest.mark.parametrize(("device", "switched"), [(None, []), (1, []), (0, [0])])
def test_a_bound_kernel_gets_addresses_then_the_others_then_the_rest_on_its_device(monkeypatch, device, switched):
    current, calls = [], []

    @contextmanager
    def switch(device):
        current.append(device)
        yield
        calls.append("switched back")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", switch)
    made_for = [Descriptor(torch.zeros(1), 8), Descriptor(torch.zeros(1), 16)]
    kernel = BoundKernel.of(lambda *args: calls.append(args), made_for, ("rest", 5), device)
    assert [each.base for each in kernel.descriptors] == [None, None]
    x, y = torch.ones(2), torch.ones(3)
    kernel((x, y), "out", 0)
    first, second, *others = calls[0]
    assert first.base is x
    assert second.base is y
    assert (first.tile, second.tile, others) == (8, 16, ["out", 0, "rest", 5])
    assert current == switched
    assert len(calls) == 1 + len(switched)
    assert [each.base for each in kernel.descriptors] == [None, None]
