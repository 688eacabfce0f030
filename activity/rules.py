"""The rules of the configured events: one value of one field → the event's value, else an EventError.

Every source of events uses them: the same value gets the same verdict from JSON, Avro, CSV, JSON lines, Parquet and a
DataFrame.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from spoor.activity.fields import brief, is_of_type, name_of, text_of, time_ms
from spoor.activity.settings import EventSettings
from spoor.base.errors import EventError
from spoor.base.times import LATEST_MS


def rule(name: str, settings: EventSettings) -> Callable[[object], str | int]:
    """The function that validates and converts a value of this field. It raises EventError, and does not check the
    range of times (`check_time`)."""
    if name == "timestamp":
        return time_ms
    return partial(entity_id if name.endswith("_id") else event_name, name=name, settings=settings)


def entity_id(value: object, name: str, settings: EventSettings) -> str:
    """Validates a user or item id. `name`: user_id or item_id."""
    text = text_of(value, name, settings.max_id_bytes)
    if not fits(text, name, settings):
        expected = f"a 64-bit integer in its shortest form, as events.{name}_type = int64 says"
        raise EventError(reason="bad-type", field=name, found=brief(repr(text)), expected=expected)
    return text


def fits(text: str, name: str, settings: EventSettings) -> bool:
    """Whether an id has the type of its Feast entity. `name`: user_id or item_id."""
    kind = settings.user_id_type if name == "user_id" else settings.item_id_type
    return is_of_type(text, kind)


def event_name(value: object, name: str, settings: EventSettings) -> str:
    """Validates the name of an action or surface. `name`: action or surface."""
    return name_of(value, name, settings.max_name_bytes, settings.accepted_names(name))


def check_time(timestamp: int, *, append_time_ms: int, settings: EventSettings) -> int:
    """Returns `timestamp` (ms) if it is between the configured earliest time and the append time plus the skew. Raises
    EventError."""
    if timestamp < settings.earliest_ms:
        raise EventError(
            reason="too-early",
            field="timestamp",
            found=str(timestamp),
            expected=f"at or after {settings.earliest}",
        )
    latest = min(append_time_ms + settings.max_skew_seconds * 1000, LATEST_MS)
    if timestamp > latest:
        raise EventError(
            reason="in-the-future",
            field="timestamp",
            found=str(timestamp),
            expected=f"at most {latest} (append time + {settings.max_skew_seconds} s)",
        )
    return timestamp


def with_default(value: Any, name: str, settings: EventSettings) -> Any:
    """`value`, or the configured default for a missing action or surface."""
    if value is None and name in ("action", "surface"):
        return getattr(settings.defaults, name) or None
    return value
