"""How the paper's numbers are written, and the noise gate of its appendix."""

import math

import pytest

import paper_numbers
from paper import tex
from paper.cells import MissingData
from synthetic import TINY, synthetic_results


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.0, 3, "1.00"),
        (0.0954, 3, "0.0954"),
        (43.21, 3, "43.2"),
        (99.96, 3, "100"),
        (0.9996, 3, "1.00"),
        (6196.21, 3, "6{,}196"),
        (-1.5, 3, "-1.50"),
        (0.0, 3, "0.00"),
        (1.666, 2, "1.7"),
        (16.66, 2, "17"),
    ],
)
def test_rounding_keeps_significant_digits_and_the_integer_part(value, digits, text):
    assert tex.rounded(value, digits) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_printed(value):
    with pytest.raises(ValueError, match="finite"):
        tex.rounded(value)


@pytest.mark.parametrize(
    ("part", "text"), [(0.213, r"21\,\%"), (0.00019, r"0.019\,\%"), (0.00009, r"less than 0.01\,\%")]
)
def test_a_share_that_is_next_to_nothing_is_not_called_nothing(part, text):
    assert tex.share(part) == text


def test_lists_and_names_read_well():
    assert [tex.listed(items) for items in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
    assert tex.escaped(r"50% of A_1 & B #2 {x} \y ~z ^") == (
        r"50\% of A\_1 \& B \#2 \{x\} \textbackslash{}y \textasciitilde{}z \textasciicircum{}"
    )
    assert (tex.count(65536), tex.percent(10)) == ("65{,}536", r"10\,\%")


@pytest.mark.parametrize(
    ("strategy", "factor", "quiet"), [("zigzag/balanced", 1, "1"), ("zigzag/balanced", 9, "0"), ("", 1.5, "0")]
)
def test_a_machine_that_is_too_noisy_is_said_to_be(strategy, factor, quiet):
    """It is, if repetitions of balanced and even shards overlap, or if repetitions scatter widely."""
    results = synthetic_results(TINY)
    results.cells.loc[results.cells.strategy.str.startswith(strategy), "latency_p80_ms"] *= factor
    assert paper_numbers.live(results)["Quiet"] == quiet
    results.cells["bound_fraction"] = 1.3
    assert paper_numbers.live(results)["Quiet"] == "0"


def test_a_cell_that_was_not_measured_is_named():
    results = synthetic_results(TINY)
    results.cells = results.cells[results.cells.strategy != "zigzag/balanced"]
    with pytest.raises(MissingData, match="no latency_p80_ms of strategy zigzag/balanced at 256 tokens and 50 %"):
        paper_numbers.live(results)
