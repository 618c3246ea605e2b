"""The modules that a ring job measures, by name: the attention call and the layer around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from heteroring.bench.timing import Busy

if TYPE_CHECKING:
    from heteroring.bench.ring.job import RingCell, RingJob
    from heteroring.launch.launch import Rank

_HOME = {
    "attention": "heteroring.bench.ring.attention_call:AttentionModule",
    "fms": "heteroring.bench.ring.fms_layer:FmsModule",
}


class Module(Protocol):
    """One module of a job on this rank, with its inputs at every length that the job measures it at.

    All compute in it is slowed by the throttle of `rank` and counted by `busy`; `backend` is that of attention.
    """

    def __init__(self, rank: Rank, job: RingJob, backend: str, busy: Busy) -> None: ...

    def prepared(self, cell: RingCell) -> AbstractContextManager[Callable[[], Any] | None]:
        """Context that yields this rank's call for `cell`, with its shards ready; None if it has nothing to do."""

    def verify(self, cell: RingCell, result: Any) -> None:
        """Raise WrongResult if `result`, of a call that was prepared for `cell`, is wrong."""


def open_module(name: str, rank: Rank, job: RingJob, backend: str, busy: Busy) -> Module:
    """Open a module of a job. Every rank opens the same ones in the same order.

    Args:
        name: One of MODULES.
        rank: This rank.
        job: What is measured.
        backend: Name of the backend of attention.
        busy: Counts the time that this rank computes.

    Returns:
        The module, with its inputs.
    """
    home, attribute = _HOME[name].split(":")
    return getattr(import_module(home), attribute)(rank, job, backend, busy)
