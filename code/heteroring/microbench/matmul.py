"""Microbenchmark of matrix products: heteroring's against PyTorch's, in correctness and time.

    CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=80 python -m heteroring.microbench.matmul [--rows 1,409,4096]
    python -m heteroring.microbench.matmul --tune --rows 1,16   # launch configurations for kernels/launch_configs.py

Times are device-event times, taken alternately, the median of the repetitions. There are more copies of each right
operand than fit into L2, and they are read in turn, as a model reads its weights; a time is that of one round over all
copies, divided by their number. A product is wrong where an element is further from the exact one than rounding
explains; an element that is never written keeps the 7 that was there before.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from heteroring.bench.timing import device_ms
from heteroring.kernels import launch_configs
from heteroring.kernels.matmul import ARCHITECTURE, matmul
from heteroring.launch.machine_lock import machine_lock
from heteroring.microbench.attention import runs_here
from heteroring.microbench.options import count, counts

# (K, N) of the matrices in a layer of Llama 3 8B, and of FMS's attention layer with 32 heads of 128.
WEIGHTS = ((4096, 4096), (4096, 6144), (4096, 12288), (4096, 28672), (14336, 4096))
ROWS = (1, 64, 256, 409, 1024, 2048, 4096, 8192)
COLD_BYTES = 256 << 20  # of right operands that are read in turn: several times the L2 of an H200
WARMUP = 3

Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]


def share_wrong(way: Way, a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of the elements of way(a, b, out) that are not a @ b, rounded once."""
    out = torch.full((a.shape[0], b.shape[1]), 7.0, device=a.device, dtype=a.dtype)
    way(a, b, out)
    exact = a.double() @ b.double()
    slack = torch.finfo(a.dtype).eps * exact.abs() + 1e-5 * a.double().abs() @ b.double().abs()
    return ((out.double() - exact).abs() > slack).double().mean().item()


def host_microseconds(way: Way, calls: int = 200) -> float:
    """Microseconds of host time to launch one product while the device is busy: the fastest of 5 rounds."""
    a, b, out = (torch.zeros(64, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    rounds = []
    for _ in range(5):
        torch.cuda.synchronize()
        torch.cuda._sleep(100_000_000)
        start = time.perf_counter()
        for _ in range(calls):
            way(a, b, out)
        rounds.append((time.perf_counter() - start) / calls * 1e6)
    return min(rounds)


def torch_mm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """PyTorch's product."""
    return torch.mm(a, b, out=out)


def configured(config: launch_configs.MatmulConfig) -> Way:
    """Heteroring's product, launched as `config` says."""
    return lambda a, b, out: matmul(a, b, out, config=config)


def candidates(rows: int) -> dict[str, Way]:
    """Launch configurations for `rows` rows that compile here, by name; the one in use comes first."""
    if rows <= launch_configs.MATMUL_FLAT.block_m:
        stages = {
            (32, 128): [6],
            (32, 256): [4],
            (64, 64): [8],
            (64, 128): [4, 6, 8],
            (64, 256): [3, 4],
            (128, 64): [6],
        }
        tall = 16 if rows <= launch_configs.MATMUL_THIN.block_m else 64
        tiles = [launch_configs.MatmulConfig(tall, *tile, 1, 4, s, True) for tile, most in stages.items() for s in most]
        tiles += [launch_configs.MatmulConfig(64, 64, 128, 1, 4, s) for s in (3, 4, 6)]
    else:
        launches = ((128, 256, 8, 3), (128, 128, 8, 4), (128, 128, 4, 4), (64, 128, 4, 4))
        tiles = [launch_configs.MatmulConfig(m, n, 64, 8, warps, s) for m, n, warps, s in launches]
    a, b, out = (torch.zeros(256, 256, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    ways = {str(config): configured(config) for config in tiles}
    return {"in use": matmul} | {
        name: way for name, way in ways.items() if runs_here(name, lambda way=way: way(a, b.t(), out))
    }


def compare(ways: dict[str, Way], rows: int, k: int, n: int, repetitions: int) -> dict[str, tuple[float, float]]:
    """Compare ways to multiply a [rows, k] by b [k, n].

    Args:
        ways: Functions of (a, b, out), by name.
        rows: Rows of a.
        k: Columns of a.
        n: Columns of b.
        repetitions: Timed rounds.

    Returns:
        (share of wrong elements, milliseconds) by name.
    """
    count = math.ceil(COLD_BYTES / (2 * k * n))
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16).t() for _ in range(count)]
    a = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)
    wrong = {name: share_wrong(way, a, weights[0]) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(WARMUP + repetitions):
        for name, way in ways.items():
            ms = device_ms([partial(way, a, b, out) for b in weights], queued=True)
            if repetition >= WARMUP:
                times[name].append(ms)
    return {name: (wrong[name], statistics.median(each)) for name, each in times.items()}


def measure(options: argparse.Namespace) -> None:
    """Print a line for each product."""
    print(f"{torch.cuda.get_device_properties(0).multi_processor_count} SMs, CUDA {torch.version.cuda}")
    both: dict[str, Way] = {"torch": torch_mm, "ours": matmul}
    print("host: " + ", ".join(f"{name} {host_microseconds(way):.1f} us per call" for name, way in both.items()))
    print(f"{'rows':>5} {'K':>6} {'N':>6}   microseconds, GB/s, TFLOP/s")
    for rows in options.rows:
        ways = candidates(rows) if options.tune else both
        for k, n in WEIGHTS:
            for name, (wrong, ms) in compare(ways, rows, k, n, options.repetitions).items():
                verdict = f"{wrong:.0%} wrong" if wrong else "right"
                moved, flops = 2 * (rows * k + k * n + rows * n), 2 * rows * k * n
                figures = f"{1e3 * ms:8.1f} {moved / ms / 1e6:8.1f} {flops / ms / 1e9:8.1f}"
                print(f"{rows:5} {k:6} {n:6}   {figures}   {verdict:>10}  {name}")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=counts, default=ROWS, help="rows of the left matrix, comma separated")
    parser.add_argument("--repetitions", type=count, default=7)
    parser.add_argument("--tune", action="store_true", help="race launch configurations instead of PyTorch")
    options = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != ARCHITECTURE:
        parser.error("needs a Hopper GPU (compute capability 9.0)")
    with machine_lock():
        measure(options)


if __name__ == "__main__":
    main()
