"""Hypothesis strategies for typed text and damaged files."""

from __future__ import annotations

import copy
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def examples(short: int) -> settings:
    """`short` examples in the short profile, the same in each run, and at least 1,000 others in the long one."""
    count = max(1000, short) if LONG else short
    return settings(max_examples=count, deadline=None, derandomize=not LONG, suppress_health_check=list(HealthCheck))


# What a shell can pass, bytes that are no UTF-8 included: no NUL.
characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
text = st.text(characters | st.sampled_from("\udc80\udcff, -/@\n"), max_size=30)
numbers = st.one_of(
    st.integers(-2, 200).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "0", "9" * 30, "9" * 5000, str(2**63), "1_0", "٣", "+5", " 7 ", "0x10", "1e3", "nan", "inf"]),
)
separators = st.sampled_from([",", " ", ", ", " ,", ",,", "\t", ";"])


def listed(entries: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A list of `entries` as it may be typed."""
    return st.builds(lambda separator, words: separator.join(words), separators, st.lists(entries, max_size=4))


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


def _nested(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


anything = st.recursive(values, _nested, max_leaves=5)


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """The paths to everything in `content`, as JSON or YAML give it, itself included."""
    found = [path]
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        found += places(value, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """`content` with one entry replaced by anything, removed, or turned into another number."""
    content = copy.deepcopy(content)
    *path, last = draw(st.sampled_from(places(content)[1:]))
    inside = content
    for key in path:
        inside = inside[key]
    if draw(st.booleans()):
        number = st.sampled_from([0, 1, -1, 0.0, 1e-300, 1e300, float("nan"), float("inf"), 2**70, 100.5])
        inside[last] = draw(anything | number)
    else:
        del inside[last]
    return content


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` cut short, with some bytes replaced, or with a piece twice."""
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 40)))
    return draw(
        st.sampled_from([data[:start], data[start:], data[:start] + data[end:], data[:end] + data[start:]])
        | st.binary(max_size=8).map(lambda new: data[:start] + new + data[end:])
    )


def assert_one_line(error: ValueError) -> None:
    """Assert that an error message is one readable line."""
    assert len(str(error).splitlines()) == 1, error
    assert len(str(error)) < 2000
