"""One event as it travels: JSON or Avro in Kafka, an Arrow row in files.

`decode_event` is the border: it returns valid events, and a record that it refuses becomes a dead letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from spoor.activity.fields import FIELDS, time_ms
from spoor.activity.json_objects import found_at, nested_values, parse_object
from spoor.activity.rules import check_time, entity_id, event_name, with_default
from spoor.activity.settings import EventFields, EventSettings
from spoor.base.errors import EventError
from spoor.base.times import LATEST_MS

EVENT_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in FIELDS[:4]]
    + [pa.field("timestamp", pa.int64(), nullable=False)]  # ms since 1970, UTC
)


class Event(NamedTuple):
    user_id: str
    item_id: str
    action: str
    surface: str
    timestamp: int  # ms since 1970, UTC


def encode_event(event: Event) -> bytes:
    """The value of a Kafka record in JSON; the record's key is the user id in UTF-8."""
    return _json_bytes(event._asdict())


def event_encoder(settings: EventSettings, topic: str) -> Callable[[Event], bytes]:
    """`encode_event` for the configured format and names. Raises InfrastructureError if a needed registry does not
    answer."""
    if settings.format == "json":
        if settings.fields == EventFields():
            return encode_event
        return lambda event: _json_bytes(nested_values(event._asdict(), settings.sources))
    from spoor.activity.avro.codec import avro_encoder

    encode = avro_encoder(settings, topic)
    return lambda event: encode(event._asdict())


def events_table(events: Iterable[Event]) -> pa.Table:
    """Rows of EVENT_SCHEMA in the given order."""
    columns = list(zip(*events, strict=True)) or [()] * len(FIELDS)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)], schema=EVENT_SCHEMA)


def decode_event(value: bytes | None, *, append_time_ms: int, settings: EventSettings) -> Event:
    """Decodes and validates a record's value. `append_time_ms`: when the broker appended the record. Raises EventError,
    and InfrastructureError if the registry cannot give the record's schema: that is not the record's fault."""
    if value is None:
        raise EventError(reason="no-value", field="value", found="none", expected="an event")
    if len(value) > settings.max_record_bytes:
        raise EventError(
            reason="too-large",
            field="value",
            found=f"{len(value)} bytes",
            expected=f"at most {settings.max_record_bytes} bytes",
        )
    if append_time_ms > LATEST_MS:  # with message.timestamp.type=CreateTime a producer sets any time
        raise EventError(
            reason="in-the-future", field="append time", found=str(append_time_ms), expected=f"at most {LATEST_MS}"
        )
    user_id, item_id, action, surface, timestamp = _values(value, settings)
    try:
        return Event(
            entity_id(user_id, "user_id", settings),
            entity_id(item_id, "item_id", settings),
            event_name(action, "action", settings),
            event_name(surface, "surface", settings),
            check_time(time_ms(timestamp), append_time_ms=append_time_ms, settings=settings),
        )
    except EventError as error:
        source = dict(settings.sources)[error.field]
        if source == error.field:
            raise
        expected = f"{error.expected} in `{source}`"
        raise EventError(reason=error.reason, field=error.field, found=error.found, expected=expected) from None


def unknown_names(event: Event, settings: EventSettings) -> tuple[str, ...]:
    """Which of `action` and `surface` have a name that the configuration does not list."""
    action = "action" if settings.actions and event.action not in settings.actions else None
    surface = "surface" if settings.surfaces and event.surface not in settings.surfaces else None
    return tuple(name for name in (action, surface) if name)


def json_values(value: bytes, settings: EventSettings) -> tuple[Any, ...]:
    """The values of an event's fields in the order of FIELDS, found in a JSON object under the configured names; a
    missing value is its default or None. Raises EventError."""
    fields = parse_object(value)
    if type(fields) is dict:  # the usual case: no repeated names
        values = tuple(map(fields.get, settings.source_names))
        if None not in values:
            return values
    return tuple(with_default(found_at(fields, source), name, settings) for name, source in settings.sources)


def _json_bytes(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _values(value: bytes, settings: EventSettings) -> tuple[Any, ...]:
    if settings.format == "json":
        return json_values(value, settings)
    from spoor.activity.avro.codec import avro_values  # JSON does not load fastavro

    return avro_values(value, settings)
