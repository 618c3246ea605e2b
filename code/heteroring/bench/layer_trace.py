"""What a rank's compute stream does in one layer of a prefill: the marks, and the events that they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn

from heteroring.bench.device import Device
from heteroring.ring.partition import Partition
from heteroring.ring.schedule import visits


class Event(NamedTuple):
    """Part of a TraceRow: what happened on this rank, and when, in milliseconds from the common start."""

    kind: str
    step: int
    start_ms: float
    stop_ms: float


class LayerTrace:
    """Marks on a rank's stream around one layer, and around each block of attention in it.

    A block of attention is asked for as soon as its KV is there, so that the gap between two blocks of a layer is the
    time for which the stream was held. Between marks, work that a kernel could do without the host, such as waiting
    for KV by itself, is done apart, so that it can be told.
    """

    def __init__(self, device: Device, block: Callable) -> None:
        self._device, self._block = device, block
        self._inside = False
        self._layer: list[Any] = []
        self._blocks: list[tuple[Any, Any]] = []

    def takes_late(self, *args: Any) -> bool:
        """Whether the block can wait for late KV itself; not in the traced layer."""
        inner = getattr(self._block, "takes_late", None)
        return not self._inside and inner is not None and inner(*args)

    def block(self, *args: Any, **kwargs: Any) -> Any:
        """The block of attention that was given, marked inside the traced layer."""
        if not self._inside:
            return self._block(*args, **kwargs)
        start = self._device.mark()
        result = self._block(*args, **kwargs)
        self._blocks.append((start, self._device.mark()))
        return result

    __call__ = block

    @contextmanager
    def of(self, layer: nn.Module) -> Iterator[None]:
        """Mark what `layer` does while the block runs."""

        def begin(*_: Any) -> None:
            self._inside = True
            self._layer.append(self._device.mark())

        def end(*_: Any) -> None:
            self._inside = False
            self._layer.append(self._device.mark())

        hooks = layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def events(self, start: Any, partition: Partition, rank: int) -> list[Event]:
        """What happened, of `rank` of `partition`, from the mark `start` on; the device must be synchronized.

        Empty for a rank that computes no layer because it holds no token.
        """
        if not self._layer:
            return []

        def at(mark: Any) -> float:
            return self._device.elapsed_ms(start, mark)

        steps = [visit.step for visit in visits(partition, rank, True)]
        blocks = [Event("block", step, at(a), at(b)) for step, (a, b) in zip(steps, self._blocks, strict=True)]
        ready = blocks[0].start_ms
        waits = [Event("wait", block.step, before.stop_ms, block.start_ms) for before, block in pairwise(blocks)]
        begin, end = self._layer
        return [Event("layer", 0, at(begin), at(end)), Event("ready", 0, ready, ready), *blocks, *waits]
