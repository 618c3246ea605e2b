"""Microbenchmark of split-KV decode: time by the number of chunks, beside PyTorch's attention and the memory's limit.

    python -m heteroring.microbench.decode --keys 59000,6000 --heads 32 --kv-heads 8

A step of decode reads every key and value once and computes next to nothing, so its limit is that of reading: the
fastest reduction of a tensor larger than L2, measured in the same run, gives the memory's bandwidth, and each line says
which share of it was reached. Each launch reads another of several caches, which together exceed L2. Times are
device-event times, the median of the repetitions.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

from heteroring.bench.read_bandwidth import read_bandwidth
from heteroring.kernels import decode_parts, decode_split
from heteroring.launch.machine_lock import machine_lock
from heteroring.microbench.one_gpu import check_gpu, count, counts, elapsed_ms

CACHES_BYTES = 1 << 30
WARMUP = 3
PROGRAMS = (1, 2, 3, 4, 8)


def measure(keys: int, heads: int, kv_heads: int, head_dim: int, repetitions: int, bandwidth: float) -> None:
    """Print a row for PyTorch's attention, one for the call as `ring_decode` makes it, and one per number of chunks.

    bandwidth: bytes read in a millisecond at most.
    """
    shape = (1, kv_heads, keys, head_dim)
    size = 2 * 2 * kv_heads * keys * head_dim
    caches = [
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        for _ in range(max(2, CACHES_BYTES // size))
    ]
    q = torch.randn(1, heads, 1, head_dim, device="cuda", dtype=torch.bfloat16)
    sms = torch.cuda.get_device_properties(0).multi_processor_count

    def split(most: int | None) -> Callable[[int], object]:
        def run(i: int) -> object:
            k, v = caches[i % len(caches)]
            return decode_parts.finish(decode_split.partials(q, k, v, head_dim**-0.5, most), q.dtype)

        return run

    def torch_attention(i: int) -> object:
        k, v = caches[i % len(caches)]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    rows = [("PyTorch's attention", torch_attention), ("split-KV, as called", split(None))]
    for programs in PROGRAMS:
        most = max(1, programs * sms // kv_heads)
        rows.append((f"split-KV, {programs} per SM ({most} chunks)", split(most)))
    limit = size / bandwidth
    print(
        f"{keys} keys, {heads} query and {kv_heads} KV heads of {head_dim}, bf16: {size / 1e6:.1f} MB of KV, at "
        f"{bandwidth / 1e9:.2f} TB/s {limit * 1e3:.1f} us"
    )
    for name, run in rows:
        ms = _median_ms(run, repetitions)
        print(f"  {name:45s} {ms * 1e3:8.1f} us {size / ms / 1e9:8.2f} TB/s   of the limit {limit / ms:5.2f}")


def _median_ms(run: Callable[[int], object], repetitions: int) -> float:
    """Milliseconds of `run(i)`, i counting the calls: the median behind the warm-up."""
    times = [elapsed_ms([partial(run, i)], queued=True) for i in range(WARMUP + repetitions)]
    return statistics.median(times[WARMUP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=counts, default="59000,32768,6000", help="lengths of the cache, comma separated")
    parser.add_argument("--heads", type=count, default=32)
    parser.add_argument("--kv-heads", type=count, default=8, help="divides heads")
    parser.add_argument("--head-dim", type=count, default=128)
    parser.add_argument("--repetitions", type=count, default=50)
    options = parser.parse_args()
    check_gpu(parser, options)
    with machine_lock():
        bandwidth = read_bandwidth(torch.device("cuda"))
        for keys in options.keys:
            measure(keys, options.heads, options.kv_heads, options.head_dim, options.repetitions, bandwidth)


if __name__ == "__main__":
    main()
