"""Both throttles on GPUs: what each rank gets, and what is left when the ranks have ended."""

import os
import signal
import subprocess

import pytest
import torch
from gpu import one_gpu, poison, two_gpus
from torch.nn.functional import linear

from heteroring.bench.errors import RunError
from heteroring.bench.heartbeat import beat
from heteroring.bench.launch import launch
from heteroring.throttle.green import Green


def report(rank):
    return rank.throttle.report()


def die(rank):
    if rank.rank == 1:
        torch.ones(1, device=rank.torch_device)
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def fail(rank):
    raise RuntimeError(f"rank {rank.rank} fails")


def mps_processes():
    return subprocess.run(
        ["pgrep", "-f", "nvidia-cuda-mps"], capture_output=True, text=True, check=False
    ).stdout.split()


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


class TestMps:
    pytestmark = two_gpus

    @pytest.mark.parametrize("percentage", [80, 60, 40, 20])
    def test_products_are_right_in_part_of_a_gpu(self, percentage):
        for errors in launch(products, platform="gpu", throttle="mps", percentages=(100, percentage)):
            assert {shape: error for shape, error in errors.items() if not error <= 1} == {}

    @pytest.mark.parametrize("percentage", [50, 10])
    def test_a_rank_has_the_share_that_it_reports(self, percentage):
        before = mps_processes()
        full, throttled = launch(report, platform="gpu", throttle="mps", percentages=(100, percentage))
        assert full["multiprocessors"] == full["expected_multiprocessors"]
        assert throttled["multiprocessors"] == throttled["expected_multiprocessors"]
        assert throttled["multiprocessors"] <= full["multiprocessors"] * percentage / 100
        assert mps_processes() == before

    @pytest.mark.parametrize("task", [die, fail])
    def test_the_daemon_ends_when_a_rank_is_killed_or_raises(self, task):
        before = mps_processes()
        with pytest.raises(RunError):
            launch(task, platform="gpu", throttle="mps", percentages=(100, 50))
        assert mps_processes() == before
        assert torch.ones(1, device="cuda").item() == 1  # this process was never bound to it


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
        assert quarter > 2.5 * whole
        throttle.set(100)
        assert milliseconds(lambda: product(a, a)) < 1.5 * whole

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
