"""Hold our product of matrices against PyTorch's on this machine's GPU: which is right, and which is faster.

    CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=80 python -m heteroring.kernels.bench_matmul [--rows 1,409,4096]

Times are device-event times, taken alternately, the median of the repetitions. A product is wrong where an element is
further from the exact one than rounding explains; what is never written keeps the 7 that was there before.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from heteroring.kernels.matmul import covers, matmul

# (K, N) of the matrices in a layer of Llama 3 8B, and of FMS's attention layer with 32 heads of 128.
WEIGHTS = ((4096, 4096), (4096, 6144), (4096, 12288), (4096, 28672), (14336, 4096))
ROWS = (1, 64, 256, 409, 1024, 2048, 4096, 8192)


def milliseconds(call: Callable[[], object]) -> float:
    """Time of one call on the device."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def share_wrong(call: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of the elements of call(a, b, out) that are not a @ b, rounded once."""
    out = torch.full((a.shape[0], b.shape[1]), 7.0, device=a.device, dtype=a.dtype)
    call(a, b, out)
    exact = a.double() @ b.double()
    slack = torch.finfo(a.dtype).eps * exact.abs() + 1e-5 * a.double().abs() @ b.double().abs()
    return ((out.double() - exact).abs() > slack).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="rows of the left matrix")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    ways = {"torch": lambda a, b, out: torch.mm(a, b, out=out), "ours": matmul}
    print(f"{torch.cuda.get_device_properties(0).multi_processor_count} multiprocessors, CUDA {torch.version.cuda}")
    print(f"{'rows':>5} {'K':>6} {'N':>6}   {'torch':>11} {'ours':>11}   TFLOP/s torch, ours")
    for k, n in WEIGHTS:
        b = torch.randn(n, k, device="cuda", dtype=torch.bfloat16).t()
        for rows in map(int, options.rows.split(",")):
            a = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
            out = torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)
            if not covers(a, b, out):
                raise SystemExit("needs a Hopper GPU (compute capability 9.0)")
            wrong = {name: share_wrong(way, a, b) for name, way in ways.items()}
            times: dict[str, list[float]] = {name: [] for name in ways}
            for repetition in range(3 + options.repetitions):
                for name, way in ways.items():
                    torch.cuda._sleep(1_000_000)
                    ms = milliseconds(lambda way=way, a=a, b=b, out=out: way(a, b, out))
                    if repetition >= 3:
                        times[name].append(ms)
            speeds = {name: 2 * rows * k * n / statistics.median(each) / 1e9 for name, each in times.items()}
            verdicts = [f"{wrong[name]:.0%} wrong" if wrong[name] else "right" for name in ways]
            tflops = ", ".join(f"{speed:.1f}" for speed in speeds.values())
            print(f"{rows:5} {k:6} {n:6}   {verdicts[0]:>11} {verdicts[1]:>11}   {tflops}")


if __name__ == "__main__":
    main()
