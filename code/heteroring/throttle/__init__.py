"""Throttles, which slow ranks down, by name: none, pacing, mps, green and neighbour."""

from __future__ import annotations

from importlib import import_module

from heteroring.throttle.base import Throttle, check_percentage
from heteroring.words import choices

_HOME = {
    "none": "heteroring.throttle.base:Throttle",
    "pacing": "heteroring.throttle.pacing:Pacing",
    "mps": "heteroring.throttle.mps:Mps",
    "green": "heteroring.throttle.green:Green",
    "neighbour": "heteroring.throttle.neighbour:Neighbour",
}

THROTTLES = tuple(_HOME)

__all__ = ["DEFAULTS", "THROTTLES", "Throttle", "check_percentage", "throttle_type"]


# The default throttle of each device kind.
DEFAULTS = {"cpu": "pacing", "gpu": "mps"}


def throttle_type(name: str) -> type[Throttle]:
    """The throttle of a name.

    Args:
        name: One of THROTTLES.

    Returns:
        The subclass of Throttle.

    Raises:
        ValueError: For another name.
    """
    if name not in _HOME:
        raise ValueError(f"throttle {name!r} is unknown: choose {choices(name, THROTTLES)}")
    module, attribute = _HOME[name].split(":")
    return getattr(import_module(module), attribute)
