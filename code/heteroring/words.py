"""Words that people type: parsing lists of them, and suggesting the known word for a misspelled one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def listed(name: str, text: str) -> tuple[str, ...]:
    """The entries of `text`, separated by commas, spaces or both.

    Raises ValueError, naming the list by `name`, if there are none or one is empty.
    """
    entries = tuple(re.split(r"\s*,\s*|\s+", text.strip()))
    if "" in entries:
        raise ValueError(f"{name} {shown(text)} is not a list of entries separated by commas or spaces")
    return entries


def closest(name: object, known: Iterable[object]) -> str:
    """The one of `known` that `name` is most similar to; nothing if none is similar."""
    return next(iter(get_close_matches(str(name)[:200], map(str, known), n=1)), "")


def choices(name: object, known: Iterable[object]) -> str:
    """What to choose in place of `name`, for an error message: "one of cpu, gpu; did you mean gpu?"."""
    known = tuple(known)
    meant = closest(name, known)
    return f"one of {', '.join(map(str, known))}" + (f"; did you mean {meant}?" if meant else "")


def check_distinct(name: str, values: Sequence[object]) -> None:
    """Check a list that may hold nothing twice.

    Args:
        name: What the error message calls it.
        values: The list.

    Raises:
        ValueError: If it is empty or holds a value twice.
    """
    if not values:
        raise ValueError(f"{name} is empty")
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name} holds {value} twice")


def shown(value: object) -> str:
    """`value` for an error message, in one line that is not too long to read."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def in_one_line(text: str) -> str:
    """`text` with characters that cannot be printed, line ends among them, escaped as in Python."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
