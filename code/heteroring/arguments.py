"""Checks of arguments: flags, numbers and prefix lengths. Torch-free, because allocators use them, too."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

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


def positive(name: str, value: object) -> float:
    """`value` as a float. Raises ValueError unless it is a positive, finite number."""
    try:
        number = finite(name, value)
    except ValueError:
        number = 0.0
    if number <= 0:
        raise ValueError(f"{name} is {value!r}: it must be a positive, finite number")
    return number


def whole_number(name: str, value: Any, rule: str, least: int = 0, most: int | None = None) -> int:
    """Check an argument that must be a whole number.

    Bools are refused, although Python and PyTorch count with them: `top_k=True` is a mistake.

    Args:
        name: What the error message calls it.
        value: The argument.
        rule: The rule in words, for the error message.
        least: The least allowed value.
        most: The greatest allowed value; None for no limit.

    Returns:
        `value` as an int.

    Raises:
        ValueError: Unless it is a whole number from `least` to `most`.
    """
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) == "torch.bool"
    try:
        number = least - 1 if is_bool else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {value!r}: {rule}")
    return number


def prefix_lengths(name: str, lens: Any, ranks: int) -> tuple[int, ...]:
    """Check the numbers of earlier tokens.

    Args:
        name: What the error message calls them.
        lens: A length of 0 or more per rank, or ().
        ranks: Number of ranks.

    Returns:
        The lengths as a tuple of ints, () if all are 0.

    Raises:
        ValueError: For anything else.
    """
    if lens == ():
        return ()
    if not isinstance(lens, tuple | list) or len(lens) != ranks:
        raise ValueError(f"{name} is {lens!r}: it must be {ranks} lengths, one per rank")
    rule = "a rank holds 0 earlier tokens or more"
    found = tuple(whole_number(f"{name}[{rank}]", length, rule) for rank, length in enumerate(lens))
    return found if any(found) else ()
