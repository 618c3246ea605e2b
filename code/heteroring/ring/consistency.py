"""Consistency of a call over a group: an error on one rank, or a difference between ranks, is raised on every rank."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock, current_thread
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn

from heteroring.ring.process_group import all_bytes, exchange_device, is_group, members
from heteroring.ring.validation import check_group

MOST_KINDS = 1024

_COMPARE = os.environ.get("HETERORING_COMPARE", "")
if _COMPARE not in ("", "every"):
    raise ValueError(f"HETERORING_COMPARE is {_COMPARE!r}: it must be 'every', or not be set")

Fields = tuple[tuple[str, object], ...]


class Disagreement(ValueError):
    """The ranks of a group make different calls, or one of them cannot make its call; raised on every rank."""


@dataclass
class _Calls:
    """What a rank remembers of the calls over one group."""

    lock: RLock = field(default_factory=RLock)
    count: int = 0
    kinds: OrderedDict[Fields, None] = field(default_factory=OrderedDict)  # kinds agreed on, in order of last use
    half_way: str | None = None


_calls: WeakKeyDictionary[dist.ProcessGroup, _Calls] = WeakKeyDictionary()


class Call:
    """One call of `verb` over `group`, as a context manager: no other thread's call over the group begins within it.

    `operand` is a tensor, or a language model, on the device that the call computes on. `group`, `rank` and
    `world_size` are those of `heteroring.ring.process_group.members`; an argument that is not a group stands for all
    processes until `agree` refuses it.

    Entering raises RuntimeError if an earlier call over the group ended half way on this rank, that is by an error,
    other than a Disagreement, before `complete`.
    """

    group: Any  # a ProcessGroup; None where there is none, and world_size is 1

    def __init__(self, verb: str, group: Any, operand: object) -> None:
        self._verb, self._given, self._completed = verb, group, False
        self._device = _device_of(operand)
        self.group, self.rank, self.world_size = members(group if is_group(group) else None)

    def __enter__(self) -> Call:
        if self.world_size > 1:
            self._calls = _calls.get(self.group) or _calls.setdefault(self.group, _Calls())
            self._calls.lock.acquire()
            if self._calls.half_way:
                self._calls.lock.release()
                raise RuntimeError(
                    f"an earlier call over this group, {self._calls.half_way}, ended half way, and what is left of its "
                    "messages would be taken for this one's: make a new group"
                )
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.world_size > 1:
            if error is not None and not self._completed and not isinstance(error, Disagreement):
                self._calls.half_way = self._calls.half_way or self._verb
            self._calls.lock.release()

    def complete(self) -> None:
        """Record that all data is exchanged: a later error concerns this rank only, and the next call will be right."""
        self._completed = True

    def agree(
        self,
        describe: Callable[[], Fields],
        work: Callable[[], Any] = lambda: None,
        *,
        every_call: bool = False,
    ) -> Any:
        """Let all ranks compare what they call, and then return the result of `work`.

        An error of `describe` or `work` on one rank is an error on all ranks. Ranks also compare the verb, the name of
        the calling thread, and the number of calls that each has made over the group; what they exchange is a digest of
        16 bytes. A call that a rank leaves out cannot be told from its next call of the same kind.

        Comparing makes the host wait for the slowest rank's host, though not for the work that its device was given
        before. So on CUDA calls are compared once per kind (verb, thread and fields; MOST_KINDS are remembered). If a
        rank later makes a call of another kind that was agreed on before, at best the group's time-out catches it; copy
        engines have no time-out, and ranks may read data meant for another call. With HETERORING_COMPARE=every in the
        environment of all ranks, every call is compared.

        Args:
            describe: Checks this rank's arguments, and returns (field, value) pairs in which ranks must agree.
            work: What this rank does before the ranks agree that they can go on.
            every_call: Whether to compare every call, for calls so rare that the wait does not matter.

        Returns:
            The result of `work()`.

        Raises:
            Disagreement: On every rank, naming the error, or the field that differs and each rank's value. In a group
                of one rank, what `describe` and `work` raise is raised.
        """
        if self.world_size == 1:
            check_group(self._given)
            describe()
            return work()
        fields: Fields = ()
        calls, known, result, cause = self._calls, False, None, None
        try:
            check_group(self._given)
            fields = (("call", self._verb), ("thread", current_thread().name), *describe())
            every_call = every_call or self._always()
            known = not every_call and fields in calls.kinds
            result = work()
        except Disagreement:  # from a call nested in this one, and raised on all ranks
            raise
        except Exception as error:  # of any type: the other ranks must not wait for one that has left
            if known or calls.half_way:
                raise
            cause = error
        if not known:
            if _recording():
                self.complete()  # nothing is exchanged
                raise cause or RuntimeError(
                    f"a CUDA graph cannot record the first {self._verb} of its kind over a group, in which ranks "
                    "compare what they call: make one such call before"
                )
            self._compare(fields, cause)
        calls.kinds[fields] = None  # also if every call is compared, because a call recorded in a graph cannot be
        calls.kinds.move_to_end(fields)
        if len(calls.kinds) > MOST_KINDS:
            calls.kinds.popitem(last=False)
        calls.count += 1
        return result

    def _always(self) -> bool:
        """Whether calls of every kind are compared each time; not while a CUDA graph is recorded, when nothing runs."""
        if self._device is None or self._device.type != "cuda":
            return True
        return _COMPARE == "every" and not _recording()

    def _compare(self, fields: Fields, cause: Exception | None) -> None:
        """Raise Disagreement unless all ranks have the same `fields` and no rank has an error (`cause`)."""
        calls = self._calls
        compared = (("calls made over the group", calls.count), ("comparison", _COMPARE or "by kind"), *fields)
        mine = bytes(16) if cause else hashlib.blake2b(repr(compared).encode(), digest_size=16).digest()
        if all(each == mine for each in all_bytes(mine, self.group, self._device)) and cause is None:
            return
        problem = str(cause) or type(cause).__name__ if cause else None
        shown = {name: value if isinstance(value, str) else repr(value) for name, value in compared}
        answers: list = [None] * self.world_size
        device = exchange_device(self.group, self._device)
        with torch.cuda.device(device if device.type == "cuda" else -1):
            dist.all_gather_object(answers, (calls.count, problem, shown), self.group)
        calls.count = 1 + max(count for count, *_ in answers)  # in step again
        calls.kinds.clear()
        raise Disagreement(problem or _difference(answers)) from cause


def _recording() -> bool:
    """Whether GPU work of this thread is being recorded in a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _device_of(operand: object) -> torch.device | None:
    if isinstance(operand, nn.Module):
        operand = next(operand.parameters(), None)
    return operand.device if isinstance(operand, torch.Tensor) else None


def _difference(answers: list[tuple[int, str | None, dict[str, str]]]) -> str:
    """The error of the first rank that has one, or the first field that differs with each rank's value."""
    for rank, (_, problem, _) in enumerate(answers):
        if problem:
            return f"rank {rank}: {problem}"
    calls = [call for _, _, call in answers]
    name = next(name for call in calls for name in call if any(call.get(name) != other.get(name) for other in calls))
    return f"ranks disagree on {name}: " + ", ".join(f"rank {r} has {call.get(name)}" for r, call in enumerate(calls))
