"""Numbers for people: no powers of ten, only significant digits."""

from __future__ import annotations


def number_text(value: float, *, digits: int = 4) -> str:
    """Integers with commas; other numbers with `digits` significant digits and all digits before the point."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    if "e" in text:  # a small number: decimal notation, same digits
        exponent = int(text.partition("e")[2])
        text = f"{value:.{digits - 1 - exponent}f}"
        text = text.rstrip("0")
    return text
