"""Numbers for people."""

import pytest

from spoor.base.numbers import number_text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (125_678, "125,678"),
        (125_678.4, "125,678"),
        (1.257e5, "125,700"),
        (1e16, "10,000,000,000,000,000"),
        (0.04174, "0.04174"),
        (0.041742, "0.04174"),
        (3.14159, "3.142"),
        (999.96, "1000"),
        (0.0000123, "0.0000123"),
        (1.23456e-7, "0.0000001235"),
        (0.0, "0"),
        (-4500.5, "-4,500"),
        (True, "yes"),
        (float("nan"), "nan"),
    ],
)
def test_no_powers_of_ten(value: float, expected: str) -> None:
    assert number_text(value) == expected
