"""Microbenchmark of chunks: attention of a prompt chunk by chunk, over the KV of earlier chunks, and of it as a whole.

    python -m heteroring.microbench.chunks --platform gpu --seq-len 65536 --chunk 8192 --percentages 100,100

measures, for an even and a proportional split of every chunk over the ranks, each chunk by itself beside the chunk on
each rank alone, and all chunks queued one after another beside the whole prompt. Proportional means to the speeds just
measured alone at the whole prompt, in whole tiles. `bound` is the capacity bound over the chunk's time, `rate` the
pairs that it computes in a second over those of the whole prompt. Each rank keeps its KV in one cache, as models do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch

from heteroring.bench.shape import Shape
from heteroring.bench.verify import TOLERANCE, WrongResult
from heteroring.kernels.backend import Backend, resolve
from heteroring.launch.launch import Rank
from heteroring.microbench.options import count
from heteroring.microbench.ranks import alone_ms, measured, ring_parser, slowest_ms, splits
from heteroring.ring.attention import ring_attention
from heteroring.ring.bounds import capacity_bound
from heteroring.ring.partition import Partition
from heteroring.ring.prefix import Prefix
from heteroring.ring.shard import shard


@dataclass(frozen=True)
class Line:
    """Milliseconds of the slowest rank for one chunk, or for all (`chunk` is None), and the times to compare with.

    The bound of a chunk is the capacity bound; that of all chunks is the time of the whole prompt under the same split.
    """

    split: str
    block_lens: tuple[int, ...]
    chunk: int | None
    earlier: int
    latency_ms: float
    bound_ms: float
    rate: float

    def __str__(self) -> str:
        lens = " ".join(map(str, self.block_lens))
        if self.chunk is None:
            judged = f"of the whole prompt's {self.bound_ms:.4f} ms: {self.latency_ms / self.bound_ms:.3f}"
            return f"{self.split:12s}  {lens:>13s}  all chunks              {self.latency_ms:9.4f} ms  {judged}"
        what = f"{self.chunk} behind {self.earlier}"
        judged = f"bound {self.bound_ms / self.latency_ms:6.3f}  rate {self.rate:6.3f}"
        return f"{self.split:12s}  {lens:>13s}  {what:22s}  {self.latency_ms:9.4f} ms  {judged}"


def measure(rank: Rank, seq_len: int, chunk: int, shape: Shape, multiple: int, repetitions: int) -> list[Line]:
    """Measure every split of a prompt in chunks.

    Args:
        rank: This rank.
        seq_len: Tokens of the prompt.
        chunk: Tokens of a chunk.
        shape: Heads and element type.
        multiple: Tokens that are given out at a time.
        repetitions: Timed calls of each.

    Returns:
        The lines, the same on every rank.

    Raises:
        WrongResult: If a chunk differs from that of one rank.
    """
    attend = resolve("auto", rank.torch_device, shape.torch_dtype, shape.head_dim).wrapped(rank.throttle.wrap)
    time = partial(slowest_ms, rank, repetitions)
    whole = shape.inputs(seq_len, 0, rank.torch_device)
    spans = [(start, min(start + chunk, seq_len)) for start in range(0, seq_len, chunk)]

    def by_itself(start: int, stop: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        q, k, v = (x[:, :, :stop] for x in whole)
        return partial(attend, q[:, :, start:], k, v, scale=shape.scale, causal_offset=start)

    lines = []
    with torch.no_grad():
        everything = alone_ms(rank, repetitions, by_itself(0, seq_len))
        bounds = [capacity_bound(alone_ms(rank, repetitions, by_itself(*span))) for span in spans]
        for split, lens in splits(seq_len, everything, multiple).items():
            partition = Partition.zigzag(lens)
            shards = [shard(x, partition, rank.rank, dim=2) for x in whole]
            unchunked = time(partial(ring_attention, *shards, partition, block=attend))
            parts = [Partition.zigzag(splits(b - a, everything, multiple)[split]) for a, b in spans]
            calls = _over_cache(rank.rank, whole, spans, parts, attend)
            for (start, stop), part, call, bound in zip(spans, parts, calls, bounds, strict=True):
                want = shard(by_itself(start, stop)()[0], part, rank.rank, dim=2).double()
                if not (error := (call()[0].double() - want).norm()) <= TOLERANCE[shape.torch_dtype] * want.norm():
                    raise WrongResult(f"{part.block_lens} behind {start}, rank {rank.rank}: off by {error:.2g}")
                latency, pairs = time(call), (stop * (stop + 1) - start * (start + 1)) / (seq_len * (seq_len + 1))
                rate = pairs * unchunked / latency
                lines.append(Line(split, part.block_lens, stop - start, start, latency, bound, rate))
            together = time(lambda calls=calls: [call() for call in calls])
            lines.append(Line(split, lens, None, 0, together, unchunked, unchunked / together))
    return lines


def _over_cache(
    rank: int, whole: tuple[torch.Tensor, ...], spans: list[tuple[int, int]], parts: list[Partition], attend: Backend
) -> list[Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """A call of the ring for every span of tokens; this rank's keys and values of all of them lie in one cache."""
    q, *kv = (
        [shard(x[:, :, a:b], part, rank, dim=2) for (a, b), part in zip(spans, parts, strict=True)] for x in whole
    )
    keys, values = (torch.cat(each, dim=2) for each in kv)
    held = [list(accumulate(lens, initial=0)) for lens in zip(*(part.block_lens for part in parts), strict=True)]
    calls = []
    for i, part in enumerate(parts):
        lens = tuple(each[i] for each in held)
        m, n = lens[rank], part.block_lens[rank]
        prefix = Prefix(keys[:, :, :m], values[:, :, :m], lens)
        new = (x[:, :, m : m + n] for x in (keys, values))
        calls.append(partial(ring_attention, q[i], *new, part, prefix=prefix, block=attend))
    return calls


def run(arguments: list[str] | None = None) -> list[Line]:
    """Measure on the ranks that the command's arguments name; returns the lines."""
    parser = ring_parser(__doc__, kv_heads=8)
    parser.add_argument("--seq-len", type=count, default=65536)
    parser.add_argument("--chunk", type=count, default=8192)
    options = parser.parse_args(arguments)
    return measured(measure, parser, options, options.seq_len, options.chunk)


def main() -> None:
    """Measure and print the table."""
    for line in run():
        print(line)


if __name__ == "__main__":
    main()
