"""What a cell of a CSV may hold: parsing, printing and checking one value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """How one column is read from text, written to text, and what every value of it must satisfy.

    `parse` raises ValueError for text that is no such value; `holds` decides on a parsed value; `says` is the
    rule in words, for the error message.
    """

    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    holds: Callable[[Any], bool]
    says: str

    def read(self, text: str) -> Any:
        """The value of `text`. Raises ValueError, naming text and rule, if it breaks the rule."""
        try:
            value = self.parse(text)
        except ValueError:
            value = None
        if value is None or not self.holds(value):
            raise ValueError(f"{text!r} is not {self.says}")
        return value

    def check(self, value: Any) -> None:
        """Raises ValueError, naming value and rule, if `value` breaks the rule."""
        if not self.holds(value):
            raise ValueError(f"{value!r} is not {self.says}")


def _number(value: float) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _row(value: tuple) -> str:
    return " ".join(map(_number, value))


def _tuple_of(parse: Callable[[str], Any]) -> Callable[[str], tuple]:
    return lambda text: tuple(map(parse, text.split()))


def _boolean(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"


def one_of(*choices: str) -> Rule:
    named = ", ".join(repr(choice) for choice in choices)
    return Rule(str, str, choices.__contains__, f"one of {named}")


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


NAME = Rule(str, str, lambda text: bool(text.strip()), "a name")
BOOLEAN = Rule(_boolean, str, lambda value: isinstance(value, bool), "True or False")
COUNT = Rule(int, str, lambda n: n >= 1, "an integer from 1")
INDEX = Rule(int, str, lambda n: n >= 0, "an integer from 0")
PERCENTAGE = Rule(int, str, lambda n: 1 <= n <= 100, "an integer from 1 to 100")
POSITIVE = Rule(float, _number, _positive, "a positive, finite number")
TIME = Rule(float, _number, lambda t: t >= 0 and math.isfinite(t), "a finite number from 0")
INDICES = Rule(
    _tuple_of(int), _row, lambda row: len(row) > 0 and min(row) >= 0, "a space-separated list of integers from 0"
)
PERCENTAGES = Rule(
    _tuple_of(int),
    _row,
    lambda row: len(row) > 0 and all(1 <= n <= 100 for n in row),
    "a space-separated list of integers from 1 to 100",
)
TIMES = Rule(
    _tuple_of(float),
    _row,
    lambda row: len(row) > 0 and all(t >= 0 and math.isfinite(t) for t in row),
    "a space-separated list of finite numbers from 0",
)
