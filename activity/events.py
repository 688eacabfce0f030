"""One event, as it travels: JSON or Avro in Kafka, an Arrow row in files.

`decode_event` is the border: what it returns has been validated, what it refuses becomes a dead letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from activity.errors import EventError
from activity.settings import EventSettings

FIELDS = ("user_id", "item_id", "action", "surface", "timestamp")
EVENT_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in FIELDS[:4]]
    + [pa.field("timestamp", pa.int64(), nullable=False)]  # ms since 1970, UTC
)
LATEST_MS = 2**47 - 1  # year 6429: the latest time that a packed history carries
_INT64 = range(-(2**63), 2**63)


class Event(NamedTuple):
    user_id: str
    item_id: str
    action: str
    surface: str
    timestamp: int  # ms since 1970, UTC


def encode_event(event: Event) -> bytes:
    """The value of a Kafka record in JSON; its key is the user id in UTF-8."""
    return json.dumps(event._asdict(), ensure_ascii=False, separators=(",", ":")).encode()


def event_encoder(settings: EventSettings, topic: str) -> Callable[[Event], bytes]:
    """`encode_event` for the configured format. Raises InfrastructureError if a registry is needed and away."""
    if settings.format == "json":
        return encode_event
    from activity.avro import avro_encoder

    encode = avro_encoder(settings, topic)
    return lambda event: encode(event._asdict())


def events_table(events: Iterable[Event]) -> pa.Table:
    """Rows of EVENT_SCHEMA in the given order."""
    columns = list(zip(*events, strict=True)) or [()] * len(FIELDS)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)], schema=EVENT_SCHEMA)


def decode_event(value: bytes | None, *, append_time_ms: int, settings: EventSettings) -> Event:
    """A record's value → Event. `append_time_ms`: when the broker appended the record. Raises EventError, and
    InfrastructureError where the record's schema cannot be asked for: that is not the record's fault."""
    if value is None:
        raise EventError(reason="no-value", field="value", found="none", expected="an event")
    if len(value) > settings.max_record_bytes:
        raise EventError(
            reason="too-large",
            field="value",
            found=f"{len(value)} bytes",
            expected=f"at most {settings.max_record_bytes} bytes",
        )
    if append_time_ms > LATEST_MS:  # a topic that keeps its producers' times may say anything
        raise EventError(
            reason="in-the-future", field="append time", found=str(append_time_ms), expected=f"at most {LATEST_MS}"
        )
    fields = _fields(value, settings)
    user_id = _text(fields, "user_id", settings.max_id_bytes)
    if settings.user_id_type == "int64" and not _is_canonical_int64(user_id):
        raise EventError(
            reason="bad-type", field="user_id", found=repr(user_id), expected="a 64-bit integer in decimal"
        )
    return Event(
        user_id=user_id,
        item_id=_text(fields, "item_id", settings.max_id_bytes),
        action=_name(fields, "action", settings.actions, settings),
        surface=_name(fields, "surface", settings.surfaces, settings),
        timestamp=check_time(_timestamp(fields), append_time_ms=append_time_ms, settings=settings),
    )


def unknown_names(event: Event, settings: EventSettings) -> tuple[str, ...]:
    """Which of `action` and `surface` carry a name that the configuration does not list."""
    action = "action" if settings.actions and event.action not in settings.actions else None
    surface = "surface" if settings.surfaces and event.surface not in settings.surfaces else None
    return tuple(name for name in (action, surface) if name)


def check_time(timestamp: int, *, append_time_ms: int, settings: EventSettings) -> int:
    """Returns `timestamp` (ms) if it lies between the configured epoch and the append time plus the skew."""
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


def _fields(value: bytes, settings: EventSettings) -> dict[str, Any]:
    if settings.format == "json":
        return _parse(value)
    from activity.avro import read_avro  # what fastavro costs, those who send JSON do without

    return read_avro(value, settings)


def _parse(value: bytes) -> dict[str, Any]:
    try:
        fields = _JSON.decode(value.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise EventError(reason="not-json", field="value", found=_brief(error), expected="JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise EventError(
            reason="not-json",
            field="value",
            found=f"a JSON {type(fields).__name__}",
            expected="a JSON object",
        )
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)  # json.loads would make one for each event


def _text(fields: dict[str, Any], name: str, max_bytes: int) -> str:
    if name not in fields:
        raise EventError(reason="missing-field", field=name, found="nothing", expected="a string")
    text = fields[name]
    if not isinstance(text, str):
        raise EventError(reason="bad-type", field=name, found=f"a JSON {type(text).__name__}", expected="a string")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise EventError(reason="bad-text", field=name, found="an unpaired surrogate", expected="Unicode") from None
    if not 0 < size <= max_bytes:
        raise EventError(
            reason="bad-length",
            field=name,
            found=f"{size} bytes",
            expected=f"1 to {max_bytes} bytes of UTF-8",
        )
    if not text.isprintable() and any(ord(character) < 32 for character in text):
        raise EventError(reason="bad-text", field=name, found="a control character", expected="printable text")
    return text


def _name(fields: dict[str, Any], name: str, known: tuple[str, ...], settings: EventSettings) -> str:
    text = _text(fields, name, settings.max_name_bytes)
    if known and text not in known and settings.unknown_names == "dead-letter":
        raise EventError(
            reason=f"unknown-{name}", field=name, found=repr(text), expected=f"one of the configured {name}s"
        )
    return text


def _timestamp(fields: dict[str, Any]) -> int:
    if "timestamp" not in fields:
        raise EventError(reason="missing-field", field="timestamp", found="nothing", expected="ms or ISO 8601")
    value = fields["timestamp"]
    if isinstance(value, int) and not isinstance(value, bool) and value in _INT64:
        return value
    moment = value  # Avro's timestamps are datetimes
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        return round(moment.timestamp() * 1000)
    raise EventError(
        reason="bad-type",
        field="timestamp",
        found=_brief(repr(value)),
        expected="an integer of ms since 1970 (UTC), or an ISO 8601 time with a zone",
    )


def _is_canonical_int64(text: str) -> bool:
    try:
        return str(int(text)) == text and int(text) in _INT64
    except ValueError:
        return False


def _brief(found: object) -> str:
    text = str(found)
    return text if len(text) <= 80 else text[:77] + "..."
