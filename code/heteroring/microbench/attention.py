"""Microbenchmark of attention: the Triton backend against cuDNN, or launch configurations against one another.

    python -m heteroring.microbench.attention                          # the table of docs/experiments/kernels.md
    python -m heteroring.microbench.attention --percentages 100,50,10  # on a share of the SMs
    python -m heteroring.microbench.attention --tune --head-dim 128    # rows for kernels/launch_configs.py

An attention kernel on a whole GPU is limited by power as much as by arithmetic: an H200 falls from 1,980 MHz to
between 1,500 and 1,700 within a second. So what is compared alternates inside one run, in an order drawn anew each
round, and only ratios within one run can be compared. Times are device-event times; a score pair costs 4 D
floating-point operations per head.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import random
import statistics
import sys
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from heteroring.bench.timing import device_ms
from heteroring.files import atomic_path
from heteroring.kernels import hopper_launch, launch_configs, triton_backend
from heteroring.launch.machine_lock import machine_lock
from heteroring.microbench.options import check_gpu, count, counts

ROUND_MS = 20.0  # least device time of what is compared, each in one round


@dataclasses.dataclass(frozen=True)
class Row:
    """The times of one backend or launch configuration at one size; ratio is the time of the first one over its own."""

    contestant: str
    kind: str
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    multiprocessors: int
    rounds: int
    median_ms: float
    fastest_ms: float
    tflops: float
    ratio: float


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of the attention: `seq_len` queries and keys, batch 1."""

    kind: str
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str

    @property
    def flops(self) -> int:
        """Floating-point operations, of visible pairs only."""
        pairs = self.seq_len**2 if self.kind == "dense" else self.seq_len * (self.seq_len + 1) // 2
        return 4 * self.head_dim * self.heads * pairs

    def operands(self) -> list[torch.Tensor]:
        """q [1, heads, seq_len, head_dim], k and v [1, kv_heads, seq_len, head_dim], random."""
        return [
            torch.randn(1, h, self.seq_len, self.head_dim, device="cuda", dtype=getattr(torch, self.dtype))
            for h in (self.heads, self.kv_heads, self.kv_heads)
        ]


def race(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time callables against one another, alternating, in an order drawn anew each round.

    Args:
        contestants: What is timed, by name.
        rounds: Number of rounds; each callable runs for at least ROUND_MS in each.

    Returns:
        Milliseconds of one call in each round, by name.
    """
    repetitions = {}
    for name, run in contestants.items():
        run()
        repetitions[name] = max(1, math.ceil(ROUND_MS / device_ms([run])))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in random.sample(list(contestants), len(contestants)):
            times[name].append(device_ms([contestants[name]] * repetitions[name]))
    return times


def rows(size: Size, times: dict[str, list[float]], sms: int) -> list[Row]:
    """The rows of the result.

    Args:
        size: The size of the attention.
        times: Milliseconds in each round, by name; ratios are taken against the first name.
        sms: SMs that the kernels ran on.

    Returns:
        A row for each name.
    """
    reference = statistics.median(next(iter(times.values())))
    return [
        Row(
            contestant=name,
            **dataclasses.asdict(size),
            multiprocessors=sms,
            rounds=len(each),
            median_ms=round(statistics.median(each), 4),
            fastest_ms=round(min(each), 4),
            tflops=round(size.flops / statistics.median(each) / 1e9, 1),
            ratio=round(reference / statistics.median(each), 3),
        )
        for name, each in times.items()
    ]


def against_cudnn(size: Size) -> dict[str, Callable[[], object]]:
    """cuDNN through PyTorch, and the Triton backend, which also returns the LSE."""
    q, k, v = size.operands()
    causal = size.kind == "causal"
    scale = size.head_dim**-0.5

    def cudnn():
        return scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=size.heads != size.kv_heads
        )

    def triton():
        return triton_backend.backend(q, k, v, scale=scale, causal_offset=0 if causal else None)

    return {"cudnn": cudnn, "triton": triton}


def candidates(size: Size) -> dict[str, Callable[[], object]]:
    """Launch configurations of the kernels that can run here; the one in use now comes first."""
    q, k, v = size.operands()
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    offset = 0 if size.kind == "causal" else None
    portable = [
        launch_configs.Config(block_m, block_n, warps, stages)
        for block_m, block_n, warps in ((128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 64, 4), (128, 32, 4))
        for stages in (2, 3)
    ]
    hopper = [
        launch_configs.HopperConfig(block_n, stages, q_in_registers)
        for block_n in (64, 128)
        for stages in (2, 3, 4)
        for q_in_registers in (False, True)
    ]

    scale = size.head_dim**-0.5

    def run_portable(config):
        return lambda: triton_backend.launch(q, k, v, out, lse, scale, offset, merge=False, config=config)

    def run_hopper(config):
        def run():
            hopper_launch.prepare(q, k, v, out, lse, scale, offset, False, config).launch(q, k, v, out, lse)

        return run

    runs = {"in use": lambda: triton_backend.backend(q, k, v, scale=scale, causal_offset=offset)}
    runs |= {str(config): run_portable(config) for config in portable}
    if hopper_launch.covers(q, k, v):
        runs |= {str(config): run_hopper(config) for config in hopper}
    return {name: run for name, run in runs.items() if runs_here(name, run)}


def runs_here(name: str, run: Callable[[], object]) -> bool:
    """Whether the configuration compiles and fits an SM."""
    try:
        run()
    except Exception as error:  # Triton raises its own and the driver's errors, of no common type
        print(f"{name}: {type(error).__name__}", file=sys.stderr)
        return False
    return True


@contextmanager
def share(percentage: int):
    """Run on that share of the SMs, in a green context; yields how many there are."""
    total = torch.cuda.get_device_properties(0).multi_processor_count
    if percentage == 100:
        yield total
        return
    from torch.cuda.green_contexts import GreenContext

    wanted = max(8, round(total * percentage / 100 / 8) * 8)  # the driver partitions in groups of 8 on Hopper
    context = GreenContext.create(num_sms=wanted, device_id=0)
    context.set_context()
    try:
        yield wanted
    finally:
        torch.cuda.synchronize()
        context.pop_context()


def measure(options: argparse.Namespace) -> list[Row]:
    """Race the contestants at every size on every share of the GPU, printing a line for each."""
    found: list[Row] = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.rounds} rounds")
    sizes = [
        Size(kind, seq_len, options.heads, options.kv_heads, head_dim, options.dtype)
        for head_dim in options.head_dim
        for seq_len in options.seq_lens
        for kind in options.kinds
    ]
    # From the largest share down: cuDNN keeps the number of SMs that it first saw, and never uses more.
    for percentage in sorted(options.percentages, reverse=True):
        with share(percentage) as sms, sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            for size in sizes:
                contestants = candidates(size) if options.tune else against_cudnn(size)
                measured = rows(size, race(contestants, options.rounds), sms)
                for row in sorted(measured, key=lambda row: -row.ratio):
                    print(
                        f"{sms:4d} SMs  D {size.head_dim:3d}  {size.kind:6s} {size.seq_len:6d}  "
                        f"{row.contestant:64s} {row.median_ms:9.3f} ms  {row.tflops:6.1f} TFLOP/s  "
                        f"ratio {row.ratio:.3f}",
                        flush=True,
                    )
                found += measured
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print a table, and write it as CSV where --output says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-lens", default="16384,32768,65536", type=counts, help="comma separated")
    parser.add_argument("--kinds", default="dense,causal", type=lambda text: text.split(","))
    parser.add_argument("--head-dim", default="128", type=counts, help=f"up to {triton_backend.MOST_HEAD_DIM}")
    parser.add_argument("--heads", default=32, type=count)
    parser.add_argument("--kv-heads", default=32, type=count, help="divides heads")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--rounds", default=9, type=count)
    parser.add_argument("--percentages", default="100", type=counts, help="of the SMs")
    parser.add_argument("--tune", action="store_true", help="race launch configurations instead of cuDNN")
    parser.add_argument("--output", help="CSV file")
    options = parser.parse_args(arguments)
    if unknown := set(options.kinds) - set(launch_configs.KINDS):
        parser.error(f"kind {', '.join(sorted(unknown))} is unknown: choose from {', '.join(launch_configs.KINDS)}")
    check_gpu(parser, options)
    with machine_lock():
        found = measure(options)
    if options.output:
        with atomic_path(options.output) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(row) for row in found)


if __name__ == "__main__":
    main()
