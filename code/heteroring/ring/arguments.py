"""Rules for flags and numbers, whichever call takes them. Torch-free."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np


def flag(name: str, value: object) -> bool:
    """`value` as a bool. Raises ValueError unless it is one, or NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {value!r}: it must be True or False")
    return bool(value)


def finite(name: str, value: object) -> float:
    """`value` as a float. Raises ValueError unless it is a finite real number, and no bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: it must be a real number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value}: it must be finite")
    return number + 0.0  # -0.0 would differ from 0.0 where ranks compare it
