"""Microbenchmark of decode attention: the split-KV kernel on one GPU, and `ring_decode` over several.

    python -m heteroring.microbench.decode --keys 59000,6000 --heads 32 --kv-heads 8
    python -m heteroring.microbench.decode --block-lens 32768,32768 43691,21845 --kv-heads 32

The first prints the kernel's time by the number of chunks, by events on the device. The second, whose options give the
number of keys on each rank, prints the time of `ring_decode` call by call and, on GPUs, as a CUDA graph; that of the
rank's own part by itself, call by call; and that of PyTorch's attention to all keys on one device: by wall clock, calls
back to back, on the slowest rank. Either prints the median of the repetitions.

A step of decode reads every key and value once and computes next to nothing, so its limit is the time of reading: sums
of a tensor larger than L2, one after another in the same run, give the memory's bandwidth, and each line says which
share of it was reached. Over ranks the limit is that of the rank with most to read; on CPUs it is not known. Each
launch reads another of several caches, which together exceed L2.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist

from heteroring.bench.read_bandwidth import read_bandwidth
from heteroring.bench.shape import Shape
from heteroring.bench.timing import device_ms, host_ms
from heteroring.bench.verify import TOLERANCE, WrongResult
from heteroring.kernels import decode_partials, decode_split
from heteroring.launch.heartbeat import advance
from heteroring.launch.launch import Rank, launch
from heteroring.launch.machine_lock import machine_lock
from heteroring.microbench.options import check_gpu, count, counts, indices
from heteroring.microbench.ranks import slowest
from heteroring.ring.decode import ring_decode

CACHES_BYTES, MOST_CACHES = 1 << 30, 32
WARMUP = 3
PROGRAMS = (1, 2, 3, 4, 8)
CALLS = 200
"""Calls of a wall-clock time, of which the synchronization at its ends is then a small part."""


class Line(NamedTuple):
    """Milliseconds of the slowest rank for one way to attend, and the least time for reading; 0 where not known."""

    block_lens: tuple[int, ...]
    way: str
    latency_ms: float
    limit_ms: float

    def __str__(self) -> str:
        of = f"   limit {self.limit_ms:.4f}, of it {self.limit_ms / self.latency_ms:5.2f}" if self.limit_ms else ""
        return f"{' '.join(map(str, self.block_lens)):>13s}  {self.way:38s} {self.latency_ms:8.4f} ms{of}"


def over_ranks(
    rank: Rank, splits: tuple[tuple[int, ...], ...], shape: Shape, repetitions: int, calls: int
) -> list[Line]:
    """Measure decode over the ring for every split; the results of the first calls are compared.

    Args:
        rank: This rank.
        splits: Cached tokens by rank, of each split.
        shape: Batch, heads and element type.
        repetitions: Timed rounds.
        calls: Calls of a round.

    Returns:
        The lines, the same on every rank.
    """
    device, lines = rank.torch_device, []
    bandwidth = read_bandwidth(device) if device.type == "cuda" else 0.0
    size = 2 * shape.batch * shape.kv_heads * shape.head_dim * shape.torch_dtype.itemsize
    for lens in splits:
        count = max(2, min(MOST_CACHES, CACHES_BYTES // (size * sum(lens))))
        caches = [_whole(shape, sum(lens), device) for _ in range(count)]
        mine = slice(sum(lens[: rank.rank]), sum(lens[: rank.rank + 1]))
        own = [(q, *(x[:, :, mine].contiguous() for x in kv)) for q, *kv in caches]

        def ring(i: int, own: list = own) -> torch.Tensor:
            return ring_decode(*own[i % len(own)])

        def part(i: int, own: list = own) -> torch.Tensor:
            q, k, v = own[i % len(own)]
            return decode_partials.merge_to_output(decode_partials.partials(q, k, v, shape.scale), q.dtype)

        def torch_attention(i: int, caches: list = caches) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(*caches[i % len(caches)], enable_gqa=True)

        out, want = ring(0).double(), torch_attention(0).double()
        if not (error := ((out - want).norm() / want.norm()).item()) <= TOLERANCE[shape.torch_dtype]:
            raise WrongResult(f"block_lens {lens}, rank {rank.rank}: the result is off by {error:.2g} of its size")
        limits = [each * size / bandwidth if bandwidth else 0.0 for each in (max(lens), sum(lens))]
        ways: list[tuple[str, Callable[[int], object], int, float]] = [
            ("ring_decode, call by call", ring, 1, limits[0])
        ]
        if device.type == "cuda":
            ways.append(("ring_decode, captured", _captured(ring, len(own)), len(own), limits[0]))
        ways.append(("the rank's own part, call by call", part, 1, limits[0]))
        ways.append(("PyTorch's attention, all on one device", torch_attention, 1, limits[1]))
        for way, run, steps, limit in ways:
            lines.append(Line(lens, way, _wall_ms(rank, run, repetitions, max(1, calls // steps)) / steps, limit))
            advance()
    return lines


def _whole(shape: Shape, keys: int, device: torch.device) -> list[torch.Tensor]:
    """q [B, Hq, 1, D], k and v [B, Hkv, keys, D] of rank 0, on every rank."""
    options = {"dtype": shape.torch_dtype, "device": device}
    sizes = ((shape.heads, 1), (shape.kv_heads, keys), (shape.kv_heads, keys))
    made = [torch.randn(shape.batch, heads, n, shape.head_dim, **options) for heads, n in sizes]
    for x in made:
        dist.broadcast(x, src=0)
    return made


def _captured(run: Callable[[int], object], steps: int) -> Callable[[int], object]:
    """`steps` calls of `run` as one CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for i in range(steps):
            run(i)
    return lambda _: graph.replay()


def _wall_ms(rank: Rank, run: Callable[[int], object], repetitions: int, calls: int) -> float:
    """Milliseconds of one of `calls` calls back to back, of the slowest rank: the median after the warm-up."""

    def back_to_back() -> None:
        for i in range(calls):
            run(i)

    times = [host_ms(back_to_back, rank.device) / calls for _ in range(1 + repetitions)]
    return slowest(rank, times[1:])


def measure(shape: Shape, keys: int, repetitions: int, bandwidth: float) -> None:
    """Print a row for PyTorch's attention, one for the call as `ring_decode` makes it, and one per number of chunks.

    Args:
        shape: Batch, heads and element type.
        keys: Cached tokens.
        repetitions: Timed rounds.
        bandwidth: Bytes per millisecond that the memory can deliver.
    """
    batch, heads, kv_heads, head_dim = shape.batch, shape.heads, shape.kv_heads, shape.head_dim
    size = 2 * 2 * batch * kv_heads * keys * head_dim
    caches = [
        [torch.randn(batch, kv_heads, keys, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        for _ in range(max(2, CACHES_BYTES // size))
    ]
    q = torch.randn(batch, heads, 1, head_dim, device="cuda", dtype=torch.bfloat16)
    sms = torch.cuda.get_device_properties(0).multi_processor_count

    def split(most: int | None) -> Callable[[int], object]:
        def run(i: int) -> object:
            k, v = caches[i % len(caches)]
            return decode_partials.merge_to_output(decode_split.partials(q, k, v, head_dim**-0.5, most), q.dtype)

        return run

    def torch_attention(i: int) -> object:
        k, v = caches[i % len(caches)]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    rows = [("PyTorch's attention", torch_attention), ("split-KV, as called", split(None))]
    for programs in PROGRAMS:
        most = max(1, programs * sms // (batch * kv_heads))
        rows.append((f"split-KV, {programs} per SM ({most} chunks)", split(most)))
    limit = size / bandwidth
    print(
        f"{batch} x {keys} keys, {heads} query and {kv_heads} KV heads of {head_dim}, bf16: {size / 1e6:.1f} MB of KV, "
        f"at {bandwidth / 1e9:.2f} TB/s {limit * 1e3:.1f} us"
    )
    for name, run in rows:
        ms = _median_ms(run, repetitions)
        print(f"  {name:45s} {ms * 1e3:8.1f} us {size / ms / 1e9:8.2f} TB/s   of the limit {limit / ms:5.2f}")


def _median_ms(run: Callable[[int], object], repetitions: int) -> float:
    """Milliseconds of `run(i)`, i counting the calls: the median after the warm-up."""
    times = [device_ms([partial(run, i)], queued=True) for i in range(WARMUP + repetitions)]
    return statistics.median(times[WARMUP:])


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=counts, default="59000,32768,6000", help="lengths of the cache, comma separated")
    parser.add_argument(
        "--block-lens", type=indices, nargs="+", default=(), help="keys of each rank, comma separated: ring_decode"
    )
    parser.add_argument("--batch", type=count, default=1)
    parser.add_argument("--heads", type=count, default=32)
    parser.add_argument("--kv-heads", type=count, default=8, help="divides heads")
    parser.add_argument("--head-dim", type=count, default=128)
    parser.add_argument("--repetitions", type=count, default=50, help="with --block-lens of 200 calls each")
    parser.add_argument("--platform", default="gpu", help="of --block-lens: gpu, or cpu, where there is no limit")
    options = parser.parse_args(arguments)
    if options.block_lens:
        for line in _lines(parser, options):
            print(line)
        return
    check_gpu(parser, options)
    shape = Shape(options.batch, options.heads, options.kv_heads, options.head_dim, "bfloat16")
    with machine_lock():
        bandwidth = read_bandwidth(torch.device("cuda"))
        for keys in options.keys:
            measure(shape, keys, options.repetitions, bandwidth)


def _lines(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Line]:
    """The lines of `over_ranks`, measured on new ranks; exits with a message if that is impossible."""
    dtype = "bfloat16" if options.platform == "gpu" else "float32"
    splits = tuple(map(tuple, options.block_lens))
    if len({len(lens) for lens in splits}) > 1 or not all(map(sum, splits)):
        parser.error(f"--block-lens {splits}: each is of as many ranks as the others, and has a key")
    try:
        shape = Shape(options.batch, options.heads, options.kv_heads, options.head_dim, dtype)
        where = {"device_kind": options.platform, "throttle": "none", "percentages": (100,) * len(splits[0])}
        return launch(over_ranks, splits, shape, options.repetitions, CALLS, **where)[0]
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
