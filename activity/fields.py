"""The rules for one value of an event's field that hold under all settings (activity/rules.py adds the configured
ones).

| value | id, action, surface | time |
|---|---|---|
| text | unchanged | digits: ms; else ISO 8601 with a zone |
| integer of any size | its decimal digits | ms |
| decimal without a fraction | like the integer | like the integer |
| bytes | like their text in UTF-8 | like the text |
| datetime with a zone | refused | ms, rounded down |
| missing, boolean, floating-point number, anything else | refused | refused |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from numbers import Integral
from typing import Literal

from spoor.base.errors import EventError
from spoor.base.times import TimeTextError, datetime_ms, iso_ms

FIELDS = ("user_id", "item_id", "action", "surface", "timestamp")
INT64 = range(-(2**63), 2**63)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # C0, DEL, C1
_MOST_DIGITS = 4300  # Python's limit for integers as text
_DIGITS = re.compile(r"-?[0-9]{1,19}")


def name_of(value: object, name: str, max_bytes: int, accepted: Sequence[str]) -> str:
    """Validates the name of an action or surface. `name`: action or surface; `accepted`: the allowed names, empty =
    any."""
    text = text_of(value, name, max_bytes)
    if accepted and text not in accepted:
        expected = f"one of the configured {name}s"
        raise EventError(reason=f"unknown-{name}", field=name, found=repr(text), expected=expected)
    return text


def is_of_type(text: str, kind: Literal["string", "int64"]) -> bool:
    """Whether a Feast entity with keys of this type keeps the id unchanged."""
    return kind == "string" or is_int64(text)


def time_ms(value: object) -> int:
    """ms since 1970 in UTC. Raises EventError."""
    if type(value) is int and value in INT64:
        return value
    found = None
    if isinstance(value, (bytes, Decimal)):
        value = _as_text(value, "timestamp")
    try:
        if isinstance(value, str):
            if value[4:5] != "-" and _DIGITS.fullmatch(value) and int(value) in INT64:
                return int(value)
            return iso_ms(value)
        if isinstance(value, Integral) and not isinstance(value, bool) and int(value) in INT64:
            return int(value)
        if isinstance(value, datetime):
            return datetime_ms(value)
    except TimeTextError as error:
        found = error
    except TypeError:  # pandas' NaT is a datetime but not a time
        value = None
    if value is None:
        raise EventError(reason="missing-field", field="timestamp", found="nothing", expected=_TIME)
    text = brief(repr(value)) + (f", {found}" if found else "")
    raise EventError(reason="bad-type", field="timestamp", found=text, expected=_TIME)


_TIME = "an integer of ms since 1970 (UTC), or an ISO 8601 time with a zone"


def is_int64(text: str) -> bool:
    """Whether the text is a 64-bit integer in its shortest form: a join key of that type then returns it unchanged."""
    try:
        return len(text) <= 20 and str(number := int(text)) == text and number in INT64
    except ValueError:
        return False


def brief(found: object) -> str:
    text = str(found)
    return text if len(text) <= 80 else text[:77] + "..."


def text_of(value: object, name: str, max_bytes: int) -> str:
    text = value if type(value) is str else _as_text(value, name)
    if text.isascii():
        if text.isprintable() and 0 < len(text) <= max_bytes:
            return text
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            found = "an unpaired surrogate, or bytes that are no UTF-8"
            raise EventError(reason="bad-text", field=name, found=found, expected="Unicode") from None
    if not 0 < size <= max_bytes:
        expected = f"1 to {max_bytes} bytes of UTF-8"
        raise EventError(reason="bad-length", field=name, found=f"{size} bytes", expected=expected)
    if not text.isprintable() and (odd := _CONTROL.search(text)):
        found = f"a control character (U+{ord(odd[0]):04X})" + (", a line end" if odd[0] in "\r\n" else "")
        raise EventError(reason="bad-text", field=name, found=found, expected="text without control characters")
    return text


def _as_text(value: object, name: str) -> str:
    """Converts a value other than a plain str to text. Raises EventError."""
    if value is None:
        raise EventError(reason="missing-field", field=name, found="nothing", expected="text or an integer")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return _digits(int(value), name)
    if isinstance(value, Decimal) and value.is_finite() and int(value.as_tuple().exponent) >= 0:
        if value.adjusted() >= _MOST_DIGITS:  # Python would need hours for some
            found = f"an integer of {value.adjusted() + 1:,} digits"
            raise EventError(reason="bad-length", field=name, found=found, expected="a shorter one")
        return _digits(int(value), name)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            found = f"bytes that are no UTF-8: {brief(value)}"
            raise EventError(reason="bad-text", field=name, found=found, expected="text in UTF-8") from None
    found = f"{brief(repr(value))} of type {type(value).__name__}"
    raise EventError(reason="bad-type", field=name, found=found, expected="text or an integer")


def _digits(number: int, name: str) -> str:
    try:
        return str(number)
    except ValueError:  # more digits than Python's limit
        found = f"an integer of {number.bit_length():,} bits"
        raise EventError(reason="bad-length", field=name, found=found, expected="a shorter one") from None
