"""Numbers in print, to so many significant digits."""

from __future__ import annotations

# A smaller part of a number is not printed.
_PLACES = 9


def significant(value: float, digits: int = 3, *, thousands: str = "") -> str:
    """Print a number with so many significant digits, without an exponent: 0.0954, 43.2, 6196.

    Args:
        value: The number.
        digits: Significant digits; an integer part with more is printed whole.
        thousands: What stands between groups of three digits.

    Returns:
        The text.
    """
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2] or 0)  # none if it is not finite
    return f"{value:,.{min(_PLACES, max(0, digits - 1 - exponent))}f}".replace(",", thousands)
