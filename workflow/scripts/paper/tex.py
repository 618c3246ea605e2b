"""Formatting of numbers, words and tables in TeX."""

import math
from collections.abc import Iterable, Sequence

from heteroring.digits import significant

# In percent; a smaller share is given as less than this.
LEAST_SHARE = 0.01
# Between thousands, in braces, which TeX spaces alike in text and in formulas.
_COMMA = "{,}"

_SPECIAL = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def rounded(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits: 0.0954, 43.2, 6{,}196. Raises ValueError if it is not finite.

    The one place where a number of the paper is rounded.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be printed: a number of the paper must be finite")
    return significant(value, digits, thousands=_COMMA)


def count(value: int) -> str:
    """An integer as it is, thousands grouped."""
    return f"{value:,}".replace(",", _COMMA)


def percent(value: int) -> str:
    """A percentage in LaTeX."""
    return rf"{value}\,\%"


def share(part: float) -> str:
    """A part of one in percent, two digits of it: 21\\,\\%, 0.78\\,\\%, or that it is less than 0.01\\,\\%."""
    return rf"{rounded(100 * part, 2)}\,\%" if 100 * part >= LEAST_SHARE else rf"less than {LEAST_SHARE}\,\%"


def listed(items: Iterable[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def escaped(text: object) -> str:
    """Any text, such as the name of a device, so that TeX prints it."""
    return "".join(_SPECIAL.get(character, character) for character in str(text))


def strategy(name: str) -> str:
    """The name of a strategy in LaTeX."""
    return rf"\strategy{{{name}}}"


def tabular(columns: str, *groups: Sequence[Sequence[str]]) -> str:
    """A booktabs table of groups of rows, with a rule between groups; a head is a group like any other."""
    blocks = ["\n".join(" & ".join(row) + r" \\" for row in group) for group in groups]
    body = "\n\\midrule\n".join(blocks)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}"


def emphasized(texts: Iterable[str], best: Iterable[bool]) -> list[str]:
    """A row's texts, in bold where they are among its best."""
    return [rf"\textbf{{{text}}}" if bold else text for text, bold in zip(texts, best, strict=True)]


def spanning(columns: int, text: str) -> str:
    """An entry of a table over several columns."""
    return rf"\multicolumn{{{columns}}}{{c}}{{{text}}}"


def render(macros: dict[str, str]) -> str:
    """The file that defines `macros`, in their order."""
    lines = [f"\\newcommand{{\\{name}}}{{{text}}}" for name, text in macros.items()]
    return "\n".join(["% Generated from the measurements.", *lines]) + "\n"
