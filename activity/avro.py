"""Events in Avro. `event.avsc` beside this file is their schema, the one that events are read as.

Without a registry every record is written with that schema and nothing around it. With one, a record is in Confluent's
wire format: a zero byte, the id of the schema that it was written with (4 bytes, big-endian), the Avro record. Avro's
rules of schema resolution then tell which schemas will do; the record's name is free, and further fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.read import SchemaResolutionError

from activity.errors import EventError
from activity.schema_registry import SchemaRegistry
from activity.settings import EventSettings

SCHEMA_FILE = Path(__file__).with_name("event.avsc")
_HEADER_BYTES = 5


@cache
def event_schema() -> dict[str, Any]:
    """The content of event.avsc."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def read_avro(value: bytes, settings: EventSettings) -> dict[str, Any]:
    """The event's fields by name, of the types of event.avsc (`timestamp`: an aware datetime). Raises EventError for
    bytes or schemas that are none, InfrastructureError if the registry does not answer."""
    data = BytesIO(value)
    if settings.schema_registry:
        writer = registry(settings).schema(_schema_id(data.read(_HEADER_BYTES)))
    else:
        writer = _as_record(event_schema()["name"])
    try:
        fields: Any = schemaless_reader(data, writer, _as_record(writer["name"]))
    except SchemaResolutionError as error:
        raise _refused("schema-mismatch", str(error), "a schema that resolves to event.avsc") from None
    except Exception as error:  # fastavro lets through whatever the bytes provoke
        raise _refused("not-avro", f"{type(error).__name__} {error}", "a record of its schema") from None
    if left := len(value) - data.tell():
        raise _refused("not-avro", f"{left} bytes after the record", "one record")
    return fields


def avro_encoder(settings: EventSettings, topic: str) -> Callable[[Mapping[str, Any]], bytes]:
    """What turns an event's fields into a record's value. With a registry, event.avsc is registered as the topic's
    schema first, as Kafka's own serializers do. Raises InfrastructureError."""
    schema = _as_record(event_schema()["name"])
    header = b""
    if settings.schema_registry:
        schema_id = registry(settings).register(f"{topic}-value", event_schema())
        header = b"\0" + schema_id.to_bytes(4, "big")

    def encode(fields: Mapping[str, Any]) -> bytes:
        data = BytesIO()
        schemaless_writer(data, schema, dict(fields))
        return header + data.getvalue()

    return encode


@lru_cache(maxsize=8)
def registry(settings: EventSettings) -> SchemaRegistry:
    """One per process and settings, so that what it has answered is remembered."""
    return SchemaRegistry(
        settings.schema_registry, user=settings.schema_registry_user, password=settings.schema_registry_password
    )


@lru_cache(maxsize=100)
def _as_record(name: str) -> dict[str, Any]:
    """event.avsc under the name that the writer's record has, as Avro resolves records of equal names alone."""
    parsed: Any = parse_schema({**event_schema(), "namespace": "", "name": name})
    return parsed


def _schema_id(header: bytes) -> int:
    if len(header) < _HEADER_BYTES or header[0] != 0:
        raise _refused("not-avro", f"0x{header.hex()}", "a zero byte and a schema id, as the registry's clients write")
    return int.from_bytes(header[1:], "big")


def _refused(reason: str, found: str, expected: str) -> EventError:
    return EventError(reason=reason, field="value", found=found[:200], expected=expected)
