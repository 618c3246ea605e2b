"""Microbenchmarks: wrong options are refused in one line before a GPU is used; kernels by turns are all timed."""

import os
import re
import sys
from importlib import import_module

import pytest
import torch

from gpu import two_gpus
from heteroring.launch.machine_lock import VARIABLE, holder
from heteroring.microbench.decode import Line


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
        ("decode", "--block-lens 40,-1", "argument --block-lens: -1 is below 0"),
        ("decode", "--block-lens 40,1 41", "each is of as many ranks as the others, and has a key"),
        ("decode", "--block-lens 0,0", "each is of as many ranks as the others, and has a key"),
        ("decode", "--block-lens 1,1 --heads 4 --kv-heads 3", "heads 4 is not a multiple of kv_heads 3"),
        ("decode", "--block-lens 1,1 --platform tpu", "device kind 'tpu' cannot be measured here"),
        ("decode", "", "there is no CUDA device to measure"),
        ("chunks", "", "device kind 'gpu' needs a CUDA GPU for each rank, 2"),
        ("chunks", "--platform cpu --throttle full", "throttle 'full' is unknown"),
        ("chunks", "--platform cpu --heads 4 --kv-heads 3", "heads 4 is not a multiple of kv_heads 3"),
        ("overlap", "--platform tpu", "device kind 'tpu' cannot be measured here"),
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


def test_decode_over_ranks_is_measured_beside_pytorch(jobs_on_pools, monkeypatch, capsys):
    monkeypatch.setattr("heteroring.microbench.decode.CALLS", 2)
    words = "--platform cpu --block-lens 40,9 0,7 --heads 4 --kv-heads 2 --head-dim 16 --batch 2 --repetitions 1"
    import_module("heteroring.microbench.decode").main(words.split())
    lines = [re.fullmatch(r" *(\d+ \d+)  (.*\S) +\d+\.\d{4} ms", line) for line in capsys.readouterr().out.splitlines()]
    ways = ("ring_decode, call by call", "the rank's own part, call by call", "PyTorch's attention, all on one device")
    assert [line.groups() for line in lines] == [(lens, way) for lens in ("40 9", "0 7") for way in ways]


def test_decode_over_ranks_says_what_share_of_the_limit_was_reached():
    assert str(Line((32768, 32768), "ring_decode, captured", 0.13, 0.125)).endswith("limit 0.1250, of it  0.96")


class TestTwoGpus:
    pytestmark = two_gpus

    def test_decode_over_gpus_is_measured_as_a_graph_too_beside_its_limit(self, capsys):
        words = "--block-lens 4096,4096 8192,0 --kv-heads 8 --batch 2 --repetitions 3"
        import_module("heteroring.microbench.decode").main(words.split())
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 * 4
        assert all(", of it  " in line for line in lines)
        assert sum("ring_decode, captured" in line for line in lines) == 2


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
