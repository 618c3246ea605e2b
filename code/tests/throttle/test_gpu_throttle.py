"""Throttles on GPUs: the share that each rank gets, and clean-up after the ranks have ended."""

import os
import signal

import pytest
import torch
from torch.nn.functional import linear

import heteroring as hr
from gpu import one_gpu, poison, random_qkv, two_gpus
from heteroring.launch.errors import RunError
from heteroring.launch.heartbeat import beat
from heteroring.launch.launch import launch
from heteroring.ring.partition import Partition
from heteroring.throttle import mps_daemon
from heteroring.throttle.green import Green
from oracle import assert_both_accurate, attention64, flash_errors

HALF = torch.bfloat16


def report(rank):
    return rank.throttle.report()


def die(rank):
    if rank.rank == 1:
        torch.ones(1, device=rank.torch_device)
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def fail(rank):
    raise RuntimeError(f"rank {rank.rank} fails")


@pytest.fixture
def left_behind(monkeypatch):
    """A function that lists the MPS processes left of the daemons, one at least, that the test started."""
    monkeypatch.delenv(mps_daemon.PIPES, raising=False)
    pipes, start = [], mps_daemon._start

    def noted(folder, ours):
        pipes.append(ours[mps_daemon.PIPES])
        return start(folder, ours)

    monkeypatch.setattr(mps_daemon, "_start", noted)

    def left():
        assert pipes
        return [process for each in pipes for process in mps_daemon._processes(each)]

    return left


def products(rank):
    """The largest error of products of many shapes, in proportion to what rounding explains."""
    worst = {}
    g = torch.Generator(rank.torch_device).manual_seed(0)
    for k, n in ((4096, 12288), (4096, 4096), (1024, 1024), (14336, 4096)):
        weight, bias = (torch.randn(shape, generator=g, device="cuda").bfloat16() for shape in ((n, k), (n,)))
        for m in (1, 64, 256, 409, 1024, 2048, 4096):
            beat()
            a = torch.randn(m, k, generator=g, device="cuda").bfloat16()
            exact = a.double() @ weight.double().t()
            slack = 2**-7 * (exact.abs() + bias.double().abs()) + 1e-5 * a.double().abs() @ weight.double().t().abs()
            rows = weight.t().contiguous()
            for name, call, shift in (
                ("linear", lambda a=a, weight=weight: linear(a[None], weight)[0], 0),
                ("with bias", lambda a=a, weight=weight, bias=bias: linear(a, weight, bias), bias.double()),
                ("matmul", lambda a=a, rows=rows: a @ rows, 0),
                ("batch", lambda a=a, rows=rows: torch.stack([a, a]) @ rows[None].expand(2, -1, -1), 0),
            ):
                poison()
                worst[name, m, k, n] = ((call().double() - exact - shift).abs() / slack).max().item()
    return worst


def inputs(seq_len, seed):
    """q, k and v by the host's generator: in part of a GPU, CUDA's gives other numbers for a seed than on all of it."""
    return [x.cuda() for x in random_qkv(seq_len, 8, 2, 128, HALF, seed, device="cpu")]


def rings(rank, partition, transport, seeds):
    """This rank's part of one ring after another, on poisoned memory."""
    parts = []
    for seed in seeds:
        beat()
        shards = [hr.shard(x, partition, rank.rank, 2) for x in inputs(partition.seq_len, seed)]
        poison()
        parts.append([x.cpu() for x in hr.ring_attention(*shards, partition, transport=transport)])
    return parts


class TestMps:
    pytestmark = two_gpus

    @pytest.mark.parametrize("transport", ["p2p", "copy-engine"])
    @pytest.mark.parametrize("lens", [(1792, 256), (1701, 347)], ids=str)
    def test_a_ring_is_as_accurate_in_part_of_a_gpu_as_torch_is_on_all_of_one(self, lens, transport):
        """In whole tiles, which are met in one pass, and in others; inputs of 20 calls differ."""
        partition, seeds = Partition.zigzag(lens), range(20)
        ranks = launch(rings, partition, transport, seeds, device_kind="gpu", throttle="mps", percentages=(100, 20))
        positions = torch.arange(partition.seq_len, device="cuda")
        for seed, *parts in zip(seeds, *ranks, strict=True):
            q, k, v = inputs(partition.seq_len, seed)
            want, want_lse = attention64(q, k, v, positions, positions)
            out, lse = (hr.unshard(each, partition, 2).cuda() for each in zip(*parts, strict=True))
            assert_both_accurate(out, lse, want, want_lse, flash_errors(q, k, v, True, want, want_lse))

    @pytest.mark.parametrize("percentage", [80, 60, 40, 20])
    def test_products_are_right_in_part_of_a_gpu(self, percentage):
        for errors in launch(products, device_kind="gpu", throttle="mps", percentages=(100, percentage)):
            assert {shape: error for shape, error in errors.items() if not error <= 1} == {}

    @pytest.mark.parametrize("percentage", [50, 10])
    def test_a_rank_has_the_share_that_it_reports(self, percentage, left_behind):
        full, throttled = launch(report, device_kind="gpu", throttle="mps", percentages=(100, percentage))
        assert full["multiprocessors"] == full["expected_multiprocessors"]
        assert throttled["multiprocessors"] == throttled["expected_multiprocessors"]
        assert throttled["multiprocessors"] <= full["multiprocessors"] * percentage / 100
        assert left_behind() == []

    @pytest.mark.parametrize("task", [die, fail])
    def test_the_daemon_ends_when_a_rank_is_killed_or_raises(self, task, left_behind):
        with pytest.raises(RunError):
            launch(task, device_kind="gpu", throttle="mps", percentages=(100, 50))
        assert left_behind() == []
        assert torch.ones(1, device="cuda").item() == 1  # this process was never bound to the daemon


def milliseconds(call):
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    start.record()
    for _ in range(5):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 5


class TestGreen:
    pytestmark = one_gpu

    def test_a_wrapped_product_slows_as_asked_and_back(self):
        a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
        throttle = Green(100)
        throttle.start()
        product = throttle.wrap(torch.matmul)
        whole = milliseconds(lambda: product(a, a))
        throttle.set(25)
        got = throttle.report()
        assert got["expected_multiprocessors"] <= got["multiprocessors"] <= got["expected_multiprocessors"] + 8
        quarter = milliseconds(lambda: product(a, a))
        throttle.set(100)
        again = milliseconds(lambda: product(a, a))
        assert quarter > 1.5 * max(whole, again)  # by SMs three to four times; other work on the GPU disturbs each

    @pytest.mark.parametrize("percentage", [80, 40])
    def test_half_precision_products_are_right_in_part_of_a_gpu(self, percentage):
        throttle = Green(percentage)
        throttle.start()
        g = torch.Generator("cuda").manual_seed(0)
        for m in (1, 256, 1024, 4096):
            a, weight = (torch.randn(rows, 4096, generator=g, device="cuda").bfloat16() for rows in (m, 12288))
            exact = a.double() @ weight.double().t()
            poison()
            got = throttle.wrap(linear)(a, weight)
            assert ((got.double() - exact).abs() <= 2**-7 * exact.abs() + 0.05).all()

    def test_results_are_those_of_the_whole_device(self):
        throttle = Green(50)
        throttle.start()
        for seed in range(20):
            g = torch.Generator("cuda").manual_seed(seed)
            a, b = torch.randn(2, 1000, 1000, generator=g, device="cuda", dtype=torch.float64)
            want = a @ b + 1
            got = throttle.wrap(torch.matmul)(a * 1, b * 1) + 1
            torch.testing.assert_close(got, want)
