"""Microbenchmark of overlap: the ring's time beyond that of the same compute with all KV already at hand.

    python -m heteroring.microbench.overlap --platform gpu --throttle mps --percentages 100,50 --seq-lens 8192,65536

measures, for each length and under one throttle setting, each rank alone, the compute of an even and of a
proportional zigzag ring, that ring by each transport, and the copy-engine ring replayed as a CUDA graph. Proportional
means to the speeds just measured alone, in whole tiles. `exposed` is the ring's time beyond that of its compute;
`bound` the capacity bound over the ring's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from heteroring.bench.shape import Shape
from heteroring.kernels.backend import resolve
from heteroring.kernels.pending_kv import PendingKV
from heteroring.launch.launch import Rank
from heteroring.microbench.options import counts
from heteroring.microbench.ranks import alone_ms, measured, ring_parser, slowest_ms, splits
from heteroring.ring.attention import ring_attention, rotate
from heteroring.ring.bounds import capacity_bound
from heteroring.ring.cuda_graph import CapturedRing
from heteroring.ring.partition import Partition
from heteroring.ring.schedule import RingStep, ring_steps
from heteroring.ring.shard import shard
from heteroring.ring.transport.limits import TRANSPORTS
from heteroring.ring.transport.transport import choose_transport


@dataclass(frozen=True)
class Line:
    """Milliseconds of the slowest rank for one way to compute one split of one length, and times to compare with."""

    seq_len: int
    split: str
    block_lens: tuple[int, ...]
    way: str
    latency_ms: float
    compute_ms: float
    bound_ms: float

    def __str__(self) -> str:
        lens = " ".join(map(str, self.block_lens))
        exposed, bound = self.latency_ms / self.compute_ms - 1, self.bound_ms / self.latency_ms
        return (
            f"{self.seq_len:7d}  {self.split:12s}  {lens:>13s}  {self.way:12s}  {self.latency_ms:9.4f} ms  "
            f"exposed {exposed:6.1%}  bound {bound:6.3f}"
        )


class AtHand:
    """An exchange that has the keys and values of every step from the start."""

    fusable = False

    def __init__(self, received: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._received = received

    def start(self, step: int) -> None:
        """Do nothing: there is no transfer to start."""

    def wait(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a step."""
        return self._received[step]

    def close(self) -> None:
        """Do nothing: there is no transfer to wait for."""


class AtHandForKernels(AtHand):
    """The same for kernels that wait themselves: the counter says that all KV has arrived."""

    fusable = True

    def __init__(self, received: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__(received)
        self._counts = {step: torch.ones(1, dtype=torch.int32, device=k.device) for step, (k, _) in received.items()}

    def pending(self, step: int, first_query: int) -> PendingKV:
        """The keys and values of a step, all of which have arrived."""
        keys, values = self._received[step]
        return PendingKV(keys, values, first_query, self._counts[step].data_ptr(), keys.shape[0] * keys.shape[1])

    def consumed(self, step: int) -> None:
        """Do nothing: there is no signal to reset."""


def measure(rank: Rank, seq_lens: tuple[int, ...], shape: Shape, multiple: int, repetitions: int) -> list[Line]:
    """Measure the ring with its messages, and with all KV at hand.

    Args:
        rank: This rank.
        seq_lens: Lengths in tokens.
        shape: Heads and element type.
        multiple: Tokens that are given out at a time.
        repetitions: Timed calls of each.

    Returns:
        The lines of every length, the same on every rank.
    """
    attend = resolve("auto", rank.torch_device, shape.torch_dtype, shape.head_dim).wrapped(rank.throttle.wrap)
    group = dist.group.WORLD
    transports = list(dict.fromkeys(choose_transport(name, group, rank.torch_device) for name in TRANSPORTS))
    time = partial(slowest_ms, rank, repetitions)
    lines = []
    with torch.no_grad():
        for seq_len in seq_lens:
            whole = shape.inputs(seq_len, 0, rank.torch_device)
            call = partial(attend, *whole, scale=shape.scale, causal_offset=0)
            alone = alone_ms(rank, repetitions, call)
            for split, lens in splits(seq_len, alone, multiple).items():
                partition = Partition.zigzag(lens)
                shards = [shard(x, partition, rank.rank, dim=2) for x in whole]
                steps = {step.index: step for step in ring_steps(partition, rank.rank, True)}
                received = {index: _keys_of(step, partition, whole) for index, step in steps.items()}
                compute = {
                    kind: time(partial(rotate, *shards, steps, kind(received), rank.world_size, shape.scale, attend))
                    for kind in (AtHand, AtHandForKernels)
                }
                ways = {
                    name: partial(ring_attention, *shards, partition, block=attend, transport=name)
                    for name in transports
                }
                if shards[0].is_cuda:
                    ways["graph"] = CapturedRing(*shards, partition, block=attend)
                for way, ring in ways.items():
                    same = compute[AtHand if way == "p2p" else AtHandForKernels]
                    lines.append(Line(seq_len, split, lens, way, time(ring), same, capacity_bound(alone)))
    return lines


def _keys_of(
    step: RingStep, partition: Partition, whole: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = (shard(x, partition, step.kv_rank, dim=2)[:, :, : step.keys].contiguous() for x in whole[1:])
    return keys, values


def run(arguments: list[str] | None = None) -> list[Line]:
    """Measure on the ranks that the command's arguments name; returns the lines."""
    parser = ring_parser(__doc__, kv_heads=32)
    parser.add_argument("--seq-lens", type=counts, default=(8192, 16384, 32768, 65536))
    options = parser.parse_args(arguments)
    return measured(measure, parser, options, options.seq_lens)


def main() -> None:
    """Measure and print the table."""
    for line in run():
        print(line)


if __name__ == "__main__":
    main()
