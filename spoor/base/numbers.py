"""Numbers for people: never in powers of ten, no more digits than mean something."""

from __future__ import annotations


def number_text(value: float, *, digits: int = 4) -> str:
    """Whole numbers whole, with commas; others to `digits` significant digits, all of those before the point."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    if "e" in text:  # small: as a decimal, with as many digits
        exponent = int(text.partition("e")[2])
        text = f"{value:.{digits - 1 - exponent}f}"
        text = text.rstrip("0")
    return text
