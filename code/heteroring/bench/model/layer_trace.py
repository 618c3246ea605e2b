"""The trace of one layer of a prefill: marks on a rank's compute stream, and the events made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from heteroring.kernels.backend import PendingKVBackend
from heteroring.launch.device import Device
from heteroring.ring.partition import Partition
from heteroring.ring.schedule import ring_steps
from heteroring.ring.transport.messages import messages
from heteroring.ring.transport.transport import Exchange, watched


class Event(NamedTuple):
    """Part of a TraceRow: what happened on this rank, and when, in milliseconds from the common start."""

    kind: str
    step: int
    start_ms: float
    stop_ms: float


class LayerTrace(PendingKVBackend):
    """Marks on a rank's stream around one layer, around each backend call in it, and where it waits for others.

    In the traced layer no kernel waits for KV by itself, because marks could not show that wait. `meets`: whether ranks
    meet before each exchange, to agree on the call, as they do on a CPU; that is a wait, too.
    """

    def __init__(self, device: Device, attend: PendingKVBackend, meets: bool) -> None:
        super().__init__(attend, attend.takes_pending)
        self._device, self._meets = device, meets
        self._inside = False
        self._layer: list[Any] = []
        self._computed: Any = None
        self._ready: Any = None
        self._calls: list[tuple[Any, Any]] = []
        self._waits: dict[int, tuple[Any, Any]] = {}
        self._sent: tuple[Any, Any] | None = None

    def takes_pending(self, *args: Any) -> bool:
        """Whether the backend can wait for pending KV itself; not in the traced layer."""
        return not self._inside and super().takes_pending(*args)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute by the given backend, with marks inside the traced layer."""
        if not self._inside:
            return super().__call__(*args, **kwargs)
        if self._ready is None:  # no exchange was opened: this rank holds all tokens
            self._ready = self._device.mark()
        result, marks = self._marked(super().__call__, *args, **kwargs)
        self._calls.append(marks)
        return result

    @contextmanager
    def of(self, layer: nn.Module) -> Iterator[None]:
        """Context within which the work of `layer` is marked."""

        def begin(*_: Any) -> None:
            self._inside = True
            self._layer.append(self._device.mark())

        def end(*_: Any) -> None:
            self._inside = False
            self._layer.append(self._device.mark())

        def rotated(*args: Any, **kwargs: Any) -> Any:
            result = rotate(*args, **kwargs)
            if self._inside:
                self._computed = self._device.mark()
            return result

        hooks = layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)
        encoder = layer.attn.position_encoder
        rotate, encoder.adjusted_qk = encoder.adjusted_qk, rotated
        try:
            with watched(self._watch):
                yield
        finally:
            encoder.adjusted_qk = rotate
            for hook in hooks:
                hook.remove()

    def events(self, start: Any, partition: Partition, rank: int) -> list[Event]:
        """The events of this rank in the traced layer; the device must be synchronized.

        Args:
            start: The mark from which times count.
            partition: Which tokens each rank holds.
            rank: This rank.

        Returns:
            The events; none for a rank without tokens, which computes no layer.
        """
        if not self._layer:
            return []

        def event(kind: str, step: int, marks: tuple[Any, Any]) -> Event:
            return Event(kind, step, *(self._device.elapsed_ms(start, mark) for mark in marks))

        steps = [step.index for step in ring_steps(partition, rank, True)]
        found = [event("layer", 0, tuple(self._layer)), event("ready", 0, (self._ready, self._ready))]
        found += [event("block", step, marks) for step, marks in zip(steps, self._calls, strict=True)]
        found += [event("wait", step, marks) for step, marks in self._waits.items()]
        if self._meets:
            found.append(event("wait", 0, (self._computed, self._ready)))
        if self._sent and (sends := messages(partition, rank, True).sends):
            found.append(event("sent", max(sends), self._sent))
        return found

    def _marked(self, function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, Any]]:
        start = self._device.mark()
        result = function(*args, **kwargs)
        return result, (start, self._device.mark())

    def _watch(self, exchange: Exchange) -> Exchange:
        if not self._inside:
            return exchange
        self._ready = self._device.mark()
        return _Watched(self, exchange)


class _Watched:
    """An exchange that marks when this rank waits for KV."""

    fusable = False

    def __init__(self, trace: LayerTrace, exchange: Exchange) -> None:
        self._trace, self._exchange = trace, exchange

    def start(self, step: int) -> None:
        self._exchange.start(step)

    def wait(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        received, self._trace._waits[step] = self._trace._marked(self._exchange.wait, step)
        return received

    def close(self) -> None:
        _, self._trace._sent = self._trace._marked(self._exchange.close)
