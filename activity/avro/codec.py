"""Encodes and decodes events in Avro.

Without a registry, every record is plain Avro with the schema `event.avsc` beside this file. With a registry, a record
has Confluent's wire format: a zero byte, the id of its writer schema (4 bytes, big-endian), the Avro record. The writer
schema may be any record with the event's fields under the configured names; other fields are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from fastavro import parse_schema, schemaless_reader, schemaless_writer

from spoor.activity.avro.registry import MAX_SCHEMAS, SchemaRegistry
from spoor.activity.avro.schemas import ReadPlan, nested_schema, read_plan
from spoor.activity.fields import FIELDS
from spoor.activity.json_objects import found_at, nested_values
from spoor.activity.rules import with_default
from spoor.activity.settings import EventFields, EventSettings
from spoor.base.errors import EventError, UsageError

SCHEMA_FILE = Path(__file__).with_name("event.avsc")
_HEADER_BYTES = 5
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


@cache
def event_schema() -> dict[str, Any]:
    """The content of event.avsc."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def avro_values(value: bytes, settings: EventSettings) -> tuple[Any, ...]:
    """The values of an event's fields in the order of FIELDS: times in ms, a missing value as its default or None.
    Raises EventError for an invalid record or schema, InfrastructureError if the registry does not answer."""
    data = BytesIO(value)
    plan = _plans(settings).plan(_schema_id(data.read(_HEADER_BYTES))) if settings.schema_registry else _own_plan()
    try:
        fields: Any = schemaless_reader(data, plan.writer, plan.reader)
    except Exception as error:  # bad bytes make fastavro raise errors of many types
        raise _refused("not-avro", f"{type(error).__name__} {error}", "a record of its schema") from None
    if left := len(value) - data.tell():
        raise _refused("not-avro", f"{left} bytes after the record", "one record")
    values = ((name, convert(found_at(fields, source))) for name, source, convert in plan.columns)
    return tuple(with_default(value, name, settings) for name, value in values)


def avro_encoder(settings: EventSettings, topic: str) -> Callable[[Mapping[str, Any]], bytes]:
    """Returns the function that encodes an event's fields as a record's value. With a registry, event.avsc with the
    configured names is first registered as the topic's schema, as Kafka's own serializers do. Raises UsageError for
    names that Avro does not allow, InfrastructureError."""
    sources = settings.sources if settings.schema_registry else tuple((name, name) for name in FIELDS)
    for name, source in sources:
        if not all(_NAME.fullmatch(part) for part in source.split(".")):
            raise UsageError(
                f"events.fields.{name} is `{source}`, which no Avro record can have",
                hint="Avro's names hold letters, digits and _ alone: name the field as the topic's schema does",
            )
    written = nested_schema(event_schema(), sources)
    schema: Any = parse_schema(written)
    header = b""
    if settings.schema_registry:
        schema_id = registry(settings).register(f"{topic}-value", written)
        header = b"\0" + schema_id.to_bytes(4, "big")

    def encode(fields: Mapping[str, Any]) -> bytes:
        data = BytesIO()
        schemaless_writer(data, schema, nested_values(fields, sources))
        return header + data.getvalue()

    return encode


@lru_cache(maxsize=8)
def registry(settings: EventSettings) -> SchemaRegistry:
    """The registry client of these settings. A process has one per settings, so that its cache is shared."""
    return SchemaRegistry(
        settings.schema_registry, user=settings.schema_registry_user, password=settings.schema_registry_password
    )


class _Plans:
    """Read plans by schema id; each schema of the registry is planned once."""

    def __init__(self, settings: EventSettings) -> None:
        self._settings = settings
        self._registry = registry(settings)
        self._plans: dict[int, ReadPlan | EventError] = {}

    def plan(self, schema_id: int) -> ReadPlan:
        schema = self._registry.schema(schema_id)
        if schema_id not in self._plans:
            if len(self._plans) >= MAX_SCHEMAS:
                del self._plans[next(iter(self._plans))]
            try:
                self._plans[schema_id] = read_plan(schema, self._settings)
            except EventError as error:
                self._plans[schema_id] = error
        plan = self._plans[schema_id]
        if isinstance(plan, EventError):
            raise plan.with_traceback(None)  # a kept traceback would grow with every record
        return plan


@lru_cache(maxsize=8)
def _plans(settings: EventSettings) -> _Plans:
    return _Plans(settings)


@cache
def _own_plan() -> ReadPlan:
    return read_plan(event_schema(), EventSettings(fields=EventFields()))


def _schema_id(header: bytes) -> int:
    if len(header) < _HEADER_BYTES or header[0] != 0:
        raise _refused("not-avro", f"0x{header.hex()}", "a zero byte and a schema id, as the registry's clients write")
    return int.from_bytes(header[1:], "big")


def _refused(reason: str, found: str, expected: str) -> EventError:
    return EventError(reason=reason, field="value", found=found[:200], expected=expected)
