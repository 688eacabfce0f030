"""Times as text: one parser, for events of every source, commands and settings, and its inverse.

ISO 8601 in its extended or basic form (RFC 3339 is part of it), with any number of digits of a second. Milliseconds are
always rounded down, towards the past, before 1970 too. Leap seconds (`:60`), `24:00`, fractions of minutes and times
without a zone are refused.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from spoor.base.errors import UsageError

_FIRST_MS = -62104060800000  # 0002-01-01: one day or zone earlier is still a valid date
LATEST_MS = 2**47 - 1  # 6429-10-17: the latest time that a packed history carries
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND, _MS = timedelta(seconds=1), timedelta(milliseconds=1)
_ISO = re.compile(
    r"([0-9]{4}-?(?:[0-9]{2}-?[0-9]{2}|W[0-9]{2}-?[0-9]))"  # date, also of a week
    r"(?:[Tt ]([0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2}(?:[.,]([0-9]+))?)?)?))?"  # time, and digits of a second
    r"([Zz]|[+-][0-9]{2}(?::?[0-5][0-9])?)?"  # zone
)


class TimeTextError(ValueError):
    """An invalid time; the message gives the reason. `no_zone`: only the zone is missing."""

    def __init__(self, message: str, *, no_zone: bool = False) -> None:
        super().__init__(message)
        self.no_zone = no_zone


def iso_ms(text: str, *, dates: bool = False) -> int:
    """ISO 8601 → ms since 1970 in UTC. With `dates` a date alone is its midnight, in UTC if it has no zone. Raises
    TimeTextError."""
    if len(text) in (20, 24) and text[10:20:3] in ("T::Z", "T::.") and text[-1] == "Z":  # the usual forms
        try:
            return (datetime.fromisoformat(text) - _EPOCH) // _MS
        except ValueError:
            pass
    found = _ISO.fullmatch(text)
    if found is None:
        raise TimeTextError("no ISO 8601 time")
    date, time, digits, zone = found.groups()
    if time is None:
        if not dates:
            raise TimeTextError("a date without a time")
        time, zone = "00", zone or "Z"
    whole = time if digits is None else time[: -len(digits) - 1]
    try:
        moment = datetime.fromisoformat(f"{date}T{whole}{(zone or 'Z').upper()}")
    except ValueError:
        raise TimeTextError("no ISO 8601 time") from None
    if zone is None:  # checked last: all else is valid
        raise TimeTextError("a time without a zone", no_zone=True)
    ms = (moment - _EPOCH) // _SECOND * 1000
    return ms if digits is None else ms + int((digits + "00")[:3])


def datetime_ms(moment: datetime) -> int:
    """ms since 1970 in UTC, rounded down. Raises TimeTextError without a zone."""
    if moment.tzinfo is None:
        raise TimeTextError("a time without a zone", no_zone=True)
    return (moment - _EPOCH) // _MS


def iso_text(time_ms: int) -> str:
    """ms since 1970 in UTC → ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time_ms(text: str) -> int:
    """A time in a command or a setting → ms since 1970 in UTC: ISO 8601 with a zone, or a date, which is its midnight.
    Raises UsageError."""
    try:
        found = iso_ms(text, dates=True)
    except TimeTextError as error:
        if error.no_zone:
            raise UsageError(f"`{text}` has no time zone", hint=f"write {text}Z for UTC") from None
        hint = "write for example 2026-01-31T00:00:00Z, or 2026-01-31 for midnight UTC"
        raise UsageError(f"`{text}` is not an ISO 8601 time", hint=hint) from None
    if not _FIRST_MS <= found <= LATEST_MS:
        hint = "write 0002-01-01 or later" if found < _FIRST_MS else "write 6429-10-17 or earlier"
        raise UsageError(f"`{text}` is out of range", hint=hint)
    return found


def parse_duration_ms(text: str) -> int:
    """A number and a unit (s, m, h, d), such as 90s or 1.5d → ms. Raises UsageError."""
    number, unit = text[:-1], text[-1:]
    try:
        found = round(float(number) * _UNITS_MS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"`{text}` is not a duration", hint="write for example 30m, 6h or 1d") from None
    if found <= 0:
        raise UsageError(f"`{text}` is not above 0", hint="write for example 30m, 6h or 1d")
    return found
