"""Avro by the committed schema, and by the schemas of a registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import pyarrow as pa
import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from hypothesis import given
from hypothesis import strategies as st

from spoor.activity.avro.codec import avro_encoder, event_schema
from spoor.activity.avro.registry import MAX_ANSWER_BYTES, SchemaRegistry
from spoor.activity.events import EVENT_SCHEMA, Event, decode_event, event_encoder
from spoor.activity.settings import EventDefaults, EventFields, EventSettings
from spoor.base.errors import EventError, InfrastructureError, UsageError
from tests.conftest import free_port
from tests.schema_registry import DRIPPING, SILENT, RegistryServer, running_registry

NOW = 1_800_000_000_000
EVENT = Event("u1", "i1", "view", "home", NOW - 5)
PLAIN = EventSettings(format="avro")
# As the first release wrote it. What is here must be read for ever: change event.avsc so that it is.
FIRST_SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "ActivityEvent",
    "namespace": "spoor",
    "fields": [
        *({"name": name, "type": "string"} for name in ("user_id", "item_id", "action", "surface")),
        {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
FIRST_RECORD = bytes.fromhex("047531 046931 0876696577 08686f6d65 f6bfe285e368")
LATER_SCHEMA = {  # a field more, another order, a narrower name space
    **FIRST_SCHEMA,
    "fields": [{"name": "price", "type": ["null", "double"], "default": None}, *reversed(FIRST_SCHEMA["fields"])],
}


def written(schema: dict[str, Any], fields: dict[str, Any]) -> bytes:
    data = BytesIO()
    schemaless_writer(data, parse_schema(schema), fields)
    return data.getvalue()


def read_as(schema: dict[str, Any], value: bytes, *, written_with: dict[str, Any]) -> Any:
    return schemaless_reader(BytesIO(value), parse_schema(written_with), parse_schema(schema))


def decode(value: bytes, settings: EventSettings = PLAIN) -> Event:
    return decode_event(value, append_time_ms=NOW, settings=settings)


def refused(value: bytes, settings: EventSettings = PLAIN) -> EventError:
    with pytest.raises(EventError) as error:
        decode(value, settings)
    return error.value


def test_the_schema_file_says_what_an_event_is():
    types = {pa.string(): "string", pa.int64(): {"type": "long", "logicalType": "timestamp-millis"}}
    found = [(field["name"], field["type"]) for field in event_schema()["fields"]]
    assert found == [(field.name, types[field.type]) for field in EVENT_SCHEMA]


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=15)


@given(st.builds(Event, text, text, text, text, st.integers(PLAIN.earliest_ms, NOW)))
def test_decode_gives_back_what_was_encoded(event: Event):
    assert decode(event_encoder(PLAIN, "activity")(event)) == event


def test_the_first_record_ever_written_is_read():
    assert written(FIRST_SCHEMA, EVENT._asdict()) == FIRST_RECORD
    assert decode(FIRST_RECORD) == EVENT


def test_old_records_are_read_by_a_later_schema_and_later_ones_by_the_old():
    old = avro_encoder(PLAIN, "activity")(EVENT._asdict())
    assert read_as(LATER_SCHEMA, old, written_with=event_schema())["price"] is None
    later = written(LATER_SCHEMA, EVENT._asdict() | {"price": 9.5})
    assert read_as(event_schema(), later, written_with=LATER_SCHEMA)["user_id"] == "u1"


@pytest.mark.parametrize(
    "value", [b"", b"\x04u", b"\xff" * 20, b'{"user_id": 1}', FIRST_RECORD[:-1], FIRST_RECORD + b"x"]
)
def test_other_bytes_are_not_avro(value: bytes):
    assert refused(value).reason == "not-avro"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"user_id": ""}, "bad-length"), ({"timestamp": NOW * 2}, "in-the-future"), ({"action": "a\n"}, "bad-text")],
)
def test_fields_are_held_to_the_same_limits_as_in_json(changes: dict[str, Any], reason: str):
    assert refused(written(FIRST_SCHEMA, EVENT._asdict() | changes)).reason == reason


LIST = {"type": "record", "name": "List", "fields": [{"name": "next", "type": ["null", "List"]}]}
NOTHING = {"type": "record", "name": "Nothing", "fields": [{"name": "a", "type": "null"}]}
POINT = {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "int"}, {"name": "n", "type": NOTHING}]}


def with_field(kind: object) -> dict[str, Any]:
    """The first schema and a field that Spoor does not know."""
    return FIRST_SCHEMA | {"fields": [*FIRST_SCHEMA["fields"], {"name": "more", "type": kind}]}


# A company's own: other names, nested, integers as ids, a type that is used twice, times in ns, fields of odd types.
REFERENCE = {"type": "record", "name": "Ref", "fields": [{"name": "id", "type": ["null", "long"]}]}
COMPANYS = {
    "type": "record",
    "name": "Click",
    "namespace": "shop",
    "fields": [
        {"name": "when", "type": {"type": "long", "logicalType": "timestamp-nanos"}},
        {"name": "far", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "other", "type": REFERENCE},
        {"name": "payload", "type": {"type": "record", "name": "Payload", "fields": [
            {"name": "item", "type": "Ref"},
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["like"]}},
        ]}},
        {"name": "user", "type": ["null", "long"]},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
    ],
}  # fmt: skip
CLICK = {
    "when": 1_700_000_000_123_999_999, "far": 2**62, "other": {"id": None},
    "payload": {"item": {"id": 7}, "kind": "like"}, "user": 2**63 - 1, "day": 19_675,
}  # fmt: skip
NAMES = EventFields("user", "payload.item.id", "payload.kind", "screen", "when")


def nested(levels: int) -> Any:
    kind: Any = "int"
    for level in range(levels):
        kind = {"type": "record", "name": f"L{level}", "fields": [{"name": "x", "type": kind}]}
    return kind


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    renamed = LATER_SCHEMA | {"name": "UserAction", "namespace": "shop"}
    without_time = FIRST_SCHEMA | {"fields": FIRST_SCHEMA["fields"][:4]}
    answers = {
        1: {"schema": json.dumps(FIRST_SCHEMA)},
        2: {"schema": json.dumps(renamed)},
        3: {"schema": "message Event {}", "schemaType": "PROTOBUF"},
        4: {"schema": '"string"'},
        5: {"schema": json.dumps(without_time)},
        6: {"schema": json.dumps(with_field({"type": "array", "items": "null"}))},
        7: {"schema": json.dumps(with_field(LIST))},
        8: {"schema": json.dumps(with_field({"type": "array", "items": NOTHING}))},
        9: {"schema": json.dumps(with_field({"type": "array", "items": POINT}))},
        10: {"schema": json.dumps(COMPANYS)},
        11: {"schema": json.dumps(with_field(nested(40)))},
    }
    with running_registry(answers) as server:
        yield server


@pytest.fixture
def registered(server: RegistryServer) -> EventSettings:
    return EventSettings(
        format="avro",
        schema_registry=server.url + "/",
        schema_registry_user="spoor",
        schema_registry_password="pass",
    )


def framed(schema_id: int, record: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + record


def test_each_record_is_read_by_the_schema_that_it_names_which_is_asked_for_once(
    server: RegistryServer, registered: EventSettings
):
    later = written(LATER_SCHEMA, EVENT._asdict() | {"price": 1.0})
    for _ in range(3):
        assert decode(framed(1, FIRST_RECORD), registered) == EVENT
        assert decode(framed(2, later), registered) == EVENT
        assert refused(framed(99, FIRST_RECORD), registered).reason == "unknown-schema"
        assert refused(framed(3, b"\x0a"), registered).reason == "schema-mismatch"
    assert server.asked == {f"/schemas/ids/{n}": 1 for n in (1, 2, 3, 99)}
    assert server.authorization == "Basic c3Bvb3I6cGFzcw=="


@pytest.mark.parametrize(("schema_id", "record"), [(4, b"\x02a"), (5, FIRST_RECORD[:-6])])
def test_a_schema_that_is_none_of_an_event_is_a_mismatch(registered: EventSettings, schema_id: int, record: bytes):
    assert refused(framed(schema_id, record), registered).reason == "schema-mismatch"


@pytest.mark.parametrize("schema_id", [6, 7, 8])
def test_a_schema_by_which_a_few_bytes_claim_any_length_or_depth_is_a_mismatch(
    registered: EventSettings, schema_id: int
):
    endless = b"\x80\x80\x80\x80\x80\x80\x80\x01" if schema_id != 7 else b"\x02" * 9_000
    assert refused(framed(schema_id, FIRST_RECORD + endless), registered).reason == "schema-mismatch"


def test_a_field_of_any_other_type_is_read_over(registered: EventSettings):
    assert decode(framed(9, FIRST_RECORD + b"\x04\x02\x06\x00"), registered) == EVENT


def test_a_company_s_own_schema_is_read_under_the_configured_names(registered: EventSettings):
    settings = replace(registered, fields=NAMES, defaults=EventDefaults(surface="app"))
    click = framed(10, written(COMPANYS, CLICK))
    assert decode(click, settings) == Event(str(2**63 - 1), "7", "like", "app", 1_700_000_000_123)
    none = framed(10, written(COMPANYS, CLICK | {"user": None}))
    assert refused(none, settings).reason == "missing-field"
    assert refused(click, replace(settings, defaults=EventDefaults())).reason == "schema-mismatch"
    by_day = replace(settings, fields=replace(NAMES, user_id="day"))
    assert refused(click, by_day).reason == "bad-type"


def test_a_schema_is_nested_to_one_limit(registered: EventSettings):
    assert "100 deep" in refused(framed(11, FIRST_RECORD), registered).found


@pytest.mark.parametrize("value", [b"", b"\0\0\0\0", FIRST_RECORD, b'{"user_id": 1}'])
def test_what_names_no_schema_is_not_avro(server: RegistryServer, registered: EventSettings, value: bytes):
    assert refused(value, registered).reason == "not-avro"
    assert not server.asked


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ((500, b"oops"), "HTTP 500"),
        ((401, b""), "HTTP 401"),
        ((302, b""), "HTTP 302"),
        ((404, b"<html>no such page</html>"), "Expecting value"),
        ((404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'), "error_code"),
        ((200, b"[]"), "a JSON list"),
        ((200, b"[" * 500_000), "recursion"),
        ((200, b" " * (MAX_ANSWER_BYTES + 1)), "more than 1048576 bytes"),
        (SILENT, "timed out|no whole answer within 0.5 s"),
        (DRIPPING, "no whole answer within 0.5 s"),
    ],
)
def test_a_registry_that_fails_is_no_fault_of_the_event_and_asked_again(
    server: RegistryServer, registered: EventSettings, broken: tuple[int, bytes], found: str
):
    asking = SchemaRegistry(registered.schema_registry, answer_seconds=0.5)
    server.broken = broken
    with pytest.raises(InfrastructureError, match=found) as error:
        asking.schema(1)
    assert "events.schema_registry" in error.value.hint
    server.broken = None
    assert asking.schema(1)["name"] == "spoor.ActivityEvent"


def test_a_registry_that_nobody_serves_is_an_infrastructure_error():
    settings = EventSettings(format="avro", schema_registry=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InfrastructureError, match="refused"):
        decode(framed(1, FIRST_RECORD), settings)


def test_what_is_simulated_is_registered_and_read_back(server: RegistryServer, registered: EventSettings):
    value = event_encoder(registered, "activity")(EVENT)
    assert value == framed(12, FIRST_RECORD)
    assert server.asked == {"/subjects/activity-value/versions": 1}
    assert decode(value, registered) == EVENT


def test_what_is_simulated_under_other_names_is_read_back(registered: EventSettings):
    settings = replace(registered, fields=NAMES)
    assert decode(event_encoder(settings, "activity")(EVENT), settings) == EVENT
    with pytest.raises(UsageError, match="user-id"):
        event_encoder(replace(registered, fields=EventFields(user_id="user-id")), "activity")


@pytest.mark.parametrize(
    "settings", [{"format": "json", "schema_registry": "http://a"}, {"format": "avro", "schema_registry": "a:8081"},
                 {"format": "avro", "schema_registry": "http://me:secret@a"}]
)  # fmt: skip
def test_a_registry_that_cannot_be_meant_is_a_usage_error(settings: dict[str, Any]):
    with pytest.raises(UsageError, match="schema_registry") as error:
        EventSettings(**settings)
    assert "secret" not in str(error.value)
