"""Microbenchmark of rebalancing at constant speeds: a prefill in chunks, rebalanced beside one with a fixed split.

    python -m heteroring.microbench.steady --platform gpu --seq-len 65536 --chunk 4096

makes both by turns, on ranks of equal nominal speed. Rebalancing measures what each rank computes, for which part of
the layers give up their fused first step, exchanges the times, and may move tokens for noise. On CPUs a fixed split
also passes queries where that is fewer bytes, in short chunks behind many tokens, and a rebalanced one does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from heteroring.allocators.even import even
from heteroring.bench.rebalancing import demo_model
from heteroring.bench.timing import Busy, no_garbage_collection, timed
from heteroring.launch.heartbeat import advance
from heteroring.launch.launch import Rank
from heteroring.microbench.options import count
from heteroring.microbench.ranks import launched, ranks_parser, slowest
from heteroring.ring.partition import Partition


@dataclass(frozen=True)
class Line:
    """Milliseconds of the slowest rank for the prompt: medians of the fixed split and of the rebalanced one."""

    fixed_ms: float
    rebalanced_ms: float

    def __str__(self) -> str:
        ratio = self.rebalanced_ms / self.fixed_ms
        return f"fixed {self.fixed_ms:.1f} ms  rebalanced {self.rebalanced_ms:.1f} ms  {ratio:.3f} of fixed"


def measure(rank: Rank, device_kind: str, seq_len: int, chunk: int, repetitions: int) -> Line:
    """Measure a chunked prefill with a fixed split and with a rebalanced one, at constant speeds.

    Args:
        rank: This rank.
        device_kind: "cpu" or "gpu".
        seq_len: Tokens of the prompt.
        chunk: Tokens of a chunk.
        repetitions: Timed prefills of each, after a warm-up.

    Returns:
        Medians in milliseconds, the same on every rank.
    """
    from heteroring.fms import ring_prefill

    spec = demo_model(device_kind, seq_len)
    model = spec.build(rank.torch_device, seed=0)
    ids = torch.randint(spec.sizes.vocabulary, (1, seq_len), generator=torch.Generator().manual_seed(0))
    partition = Partition.zigzag(even(seq_len, rank.world_size))
    busy, taken = Busy(rank.device), {False: [], True: []}
    with torch.no_grad(), no_garbage_collection():
        for repetition in range(1 + repetitions):
            for rebalance in (False, True) if repetition % 2 else (True, False):
                call = partial(ring_prefill, model, ids, partition, chunk=chunk, rebalance=rebalance)
                taken[rebalance].append(timed(call, busy, rank.device).latency_ms)
                advance()
    return Line(slowest(rank, taken[False][1:]), slowest(rank, taken[True][1:]))


def run(arguments: list[str] | None = None) -> Line:
    """Measure on the ranks that the command's arguments name; returns the line."""
    parser = ranks_parser(__doc__)
    parser.add_argument("--seq-len", type=count, default=65536)
    parser.add_argument("--chunk", type=count, default=4096)
    parser.set_defaults(repetitions=5)
    options = parser.parse_args(arguments)
    return launched(measure, parser, options, options.platform, options.seq_len, options.chunk, options.repetitions)


def main() -> None:
    """Measure and print the table."""
    print(run())


if __name__ == "__main__":
    main()
