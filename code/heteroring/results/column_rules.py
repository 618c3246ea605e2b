"""How one value of a CSV column is parsed, printed and checked; rows.py has the columns themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from heteroring.words import shown

# Wider than anything measured in milliseconds or TFLOP/s, and narrow enough for squares and quotients to be finite.
LEAST, MOST = 1e-12, 1e12
_MOST_COUNT = 2**63 - 1


@dataclass(frozen=True)
class Rule:
    """How one column is read from text and written to text, and the rule for its values.

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
            raise ValueError(f"{shown(text)} is not {self.says}")
        return value

    def check(self, value: Any) -> None:
        """Raises ValueError, naming value and rule, if `value` breaks the rule."""
        if not self.holds(value):
            raise ValueError(f"{shown(value)} is not {self.says}")


def _number(value: float) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _row(value: tuple) -> str:
    return " ".join(map(_number, value))


def _plain(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` for plain numbers only: Python also accepts 1_000, surrounding space, and digits of other scripts."""

    def parsed(text: str) -> Any:
        if "_" in text or text != text.strip() or not text.isascii():
            raise ValueError(text)
        return parse(text)

    return parsed


def _tuple_of(parse: Callable[[str], Any]) -> Callable[[str], tuple]:
    return lambda text: tuple(map(parse, text.split(" ")))


def _boolean(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"


def one_of(*choices: str) -> Rule:
    """The rule of a column that holds one of some names."""
    named = ", ".join(repr(choice) for choice in choices)
    return Rule(str, str, choices.__contains__, f"one of {named}")


_integer, _decimal = _plain(int), _plain(float)


NAME = Rule(
    str,
    str,
    lambda text: bool(text.strip()) and text.isprintable() and len(text) <= 100,
    "a name of up to 100 printable characters",
)
BOOLEAN = Rule(_boolean, str, lambda value: isinstance(value, bool), "True or False")
COUNT = Rule(_integer, str, lambda n: 1 <= n <= _MOST_COUNT, "an integer from 1")
INDEX = Rule(_integer, str, lambda n: 0 <= n <= _MOST_COUNT, "an integer from 0")
PERCENTAGE = Rule(_integer, str, lambda n: 1 <= n <= 100, "an integer from 1 to 100")
POSITIVE = Rule(
    _decimal, _number, lambda value: LEAST <= value <= MOST, f"a positive, finite number from {LEAST:g} to {MOST:g}"
)
TIME = Rule(_decimal, _number, lambda t: 0 <= t <= MOST, f"a finite number from 0 to {MOST:g}")
INDICES = Rule(
    _tuple_of(_integer),
    _row,
    lambda row: len(row) > 0 and all(0 <= n <= _MOST_COUNT for n in row),
    "a space-separated list of integers from 0",
)
PERCENTAGES = Rule(
    _tuple_of(_integer),
    _row,
    lambda row: len(row) > 0 and all(1 <= n <= 100 for n in row),
    "a space-separated list of integers from 1 to 100",
)
TIMES = Rule(
    _tuple_of(_decimal),
    _row,
    lambda row: len(row) > 0 and all(0 <= t <= MOST for t in row),
    f"a space-separated list of finite numbers from 0 to {MOST:g}",
)
