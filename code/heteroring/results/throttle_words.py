"""The words for throttles in tables, figures and the paper."""

from __future__ import annotations

from typing import NamedTuple

from heteroring.words import choices


class ThrottleWords(NamedTuple):
    """The words for one throttle.

    share: what its percentages are percentages of. cause: what imposes them. device: its mention beside the ranks'
    devices, if any. method: how it works, for the paper.
    """

    share: str
    cause: str
    device: str
    method: str


_WORDS = {
    "mps": ThrottleWords("MPS active threads", "MPS", "MPS", "CUDA MPS limits on active threads"),
    "green": ThrottleWords("green-context SMs", "green context", "green contexts", "CUDA green contexts"),
    "neighbour": ThrottleWords("nominal share", "another process", "shared", "another process on the slow GPU"),
    "pacing": ThrottleWords("paced speed", "pacing", "paced", "pacing (idle time after each computation)"),
    "none": ThrottleWords("nominal speed", "no throttle", "", "none"),
}


def throttle_words(name: str) -> ThrottleWords:
    """The words for the throttle called `name`. Raises ValueError if it is not one of heteroring.throttle.THROTTLES."""
    if name not in _WORDS:
        raise ValueError(f"throttle {name!r} is unknown: choose {choices(name, _WORDS)}")
    return _WORDS[name]
