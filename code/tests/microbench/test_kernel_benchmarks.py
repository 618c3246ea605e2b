"""The kernels' benchmarks say in a line what they cannot measure, before a GPU is touched, and take turns."""

import os
import sys
from importlib import import_module

import pytest
import torch

from heteroring.launch.machine_lock import VARIABLE, holder


@pytest.mark.parametrize(
    ("name", "words", "complaint"),
    [
        ("attention", "--seq-lens 16384,0", "argument --seq-lens: 0 is below 1"),
        ("attention", "--seq-lens many", "argument --seq-lens: invalid counts value: 'many'"),
        ("attention", "--percentages -5", "argument --percentages: -5 is below 1"),
        ("attention", "--rounds 0", "argument --rounds: 0 is below 1"),
        ("attention", "--heads 4 --kv-heads 3", "--heads 4 is not a multiple of --kv-heads 3"),
        ("attention", "--kinds dense,sparse", "kind sparse is unknown"),
        ("attention", "", "there is no CUDA device to measure"),
        ("decode", "--keys 6000,0", "argument --keys: 0 is below 1"),
        ("decode", "--repetitions 0", "argument --repetitions: 0 is below 1"),
        ("decode", "--heads 4 --kv-heads 3", "--heads 4 is not a multiple of --kv-heads 3"),
        ("decode", "", "there is no CUDA device to measure"),
        ("matmul", "--rows 1,0", "argument --rows: 0 is below 1"),
        ("matmul", "--repetitions 0", "argument --repetitions: 0 is below 1"),
        ("matmul", "", "needs a Hopper GPU"),
    ],
)
def test_what_cannot_be_measured_is_refused(monkeypatch, capsys, name, words, complaint):
    benchmark = import_module(f"heteroring.microbench.{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench", *words.split()])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("name", ["attention", "decode", "matmul"])
def test_what_is_timed_holds_the_lock_of_the_machine(monkeypatch, tmp_path, name):
    benchmark, holders = import_module(f"heteroring.microbench.{name}"), []
    monkeypatch.setenv(VARIABLE, str(tmp_path / "lock"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(benchmark, "measure", lambda *_: holders.append(holder().pid))
    monkeypatch.setattr(benchmark, "read_bandwidth", lambda device: 1.0, raising=False)
    monkeypatch.setattr(sys, "argv", ["bench"])
    benchmark.main()
    assert set(holders) == {os.getpid()}
    assert holder() is None
