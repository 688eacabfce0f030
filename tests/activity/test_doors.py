"""Every odd value through every door: the same verdict, and the same event, from JSON, Avro, CSV, JSON lines, Parquet,
an Arrow table and a DataFrame."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastavro import parse_schema, schemaless_writer

from spoor.activity.avro import codec as avro
from spoor.activity.avro.schemas import read_plan
from spoor.activity.events import Event, decode_event
from spoor.activity.settings import EventDefaults, EventFields, EventSettings
from spoor.activity.sources.event_files import read_events
from spoor.base.errors import EventError, UsageError

NOW = 1_800_000_000_000
GOOD: dict[str, Any] = {"user_id": "u", "item_id": "i", "action": "v", "surface": "s", "timestamp": 1_700_000_000_000}
REFUSED = None
ABSENT = object()
PLAIN = EventSettings()
Verdict = Event | None


def from_json(row: dict[str, Any], settings: EventSettings, folder: Path) -> Verdict:
    return decoded(json.dumps(row).encode(), settings)


def from_avro(row: dict[str, Any], settings: EventSettings, folder: Path) -> Verdict:
    """Written with a schema of the values' own types, as a registry would have it."""
    schema: Any = record_schema("Event", row)
    data = BytesIO()
    schemaless_writer(data, parse_schema(schema), row)
    try:
        plan = read_plan(schema, settings)
    except EventError:
        return REFUSED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avro, "_own_plan", lambda: plan)
        return decoded(data.getvalue(), EventSettings(**vars_of(settings) | {"format": "avro"}))


def from_csv(row: dict[str, Any], settings: EventSettings, folder: Path) -> Verdict:
    path = folder / "e.csv"
    with open(path, "w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows([row.keys(), row.values()])
    return read(path, settings)


def from_json_lines(row: dict[str, Any], settings: EventSettings, folder: Path) -> Verdict:
    (folder / "e.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return read(folder / "e.jsonl", settings)


def from_parquet(row: dict[str, Any], settings: EventSettings, folder: Path) -> Verdict:
    pq.write_table(table(row), folder / "e.parquet")
    return read(folder / "e.parquet", settings)


def from_table(row: dict[str, Any], settings: EventSettings, folder: Path) -> Verdict:
    return read(table(row), settings)


def from_frame(row: dict[str, Any], settings: EventSettings, folder: Path) -> Verdict:
    """Each column of the type that pandas gives it."""
    return read(pd.DataFrame([row]), settings)


def from_frame_of_objects(row: dict[str, Any], settings: EventSettings, folder: Path) -> Verdict:
    return read(pd.DataFrame([row], dtype=object), settings)


def decoded(value: bytes, settings: EventSettings) -> Verdict:
    try:
        return decode_event(value, append_time_ms=NOW, settings=settings)
    except EventError as error:
        assert error.found and error.expected and len(str(error)) < 300
        return REFUSED


def read(source: Any, settings: EventSettings) -> Verdict:
    try:
        (row,) = read_events(source, settings, now_ms=NOW).to_pylist()
    except UsageError as error:
        assert error.hint and ("row 1" in error.message or "line 2" in error.message or "line 1" in error.message
                               or "no column" in error.message), error.message  # fmt: skip
        return REFUSED
    return Event(**row)


def table(row: dict[str, Any]) -> pa.Table:
    def column(value: Any) -> pa.Array:
        unsigned = type(value) is int and 2**63 <= value < 2**64
        return value if isinstance(value, pa.Array) else pa.array([value], pa.uint64() if unsigned else None)

    return pa.table({name: column(value) for name, value in row.items()})


def record_schema(name: str, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": key, "type": avro_type(f"{name}_{key}", value)} for key, value in row.items()],
    }


def avro_type(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return record_schema(name, value)
    types = {str: "string", bool: "boolean", int: "long", float: "double", bytes: "bytes", type(None): "null"}
    if isinstance(value, Decimal):
        return {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": -int(value.as_tuple().exponent)}
    if isinstance(value, datetime):
        return {"type": "long", "logicalType": "timestamp-micros" if value.tzinfo else "local-timestamp-micros"}
    return {"type": "array", "items": "long"} if isinstance(value, list) else types[type(value)]


def vars_of(settings: EventSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


Door = Callable[[dict[str, Any], EventSettings, Path], Verdict]
JSON_DOORS: tuple[Door, ...] = (from_json, from_json_lines)
COLUMN_DOORS: tuple[Door, ...] = (from_parquet, from_table, from_frame_of_objects)
ALL: tuple[Door, ...] = (*JSON_DOORS, from_avro, from_csv, *COLUMN_DOORS, from_frame)
TYPED = tuple(door for door in ALL if door is not from_csv)  # a CSV has no types: there it is text


@dataclass(frozen=True)
class Odd:
    """A value of one field, and what every one of the doors makes of it."""

    name: str
    field: str
    value: Any
    expected: Any  # the event's value, or REFUSED
    doors: tuple[Door, ...] = ALL
    settings: EventSettings = PLAIN


def ids(name: str, value: Any, expected: Any, doors: tuple[Door, ...] = ALL) -> list[Odd]:
    """Identity has one rule: users, items, actions and surfaces obey it alike."""
    return [
        Odd(f"{name}, {field}", field, value, expected, doors) for field in ("user_id", "item_id", "action", "surface")
    ]


INT64 = EventSettings(user_id_type="int64", item_id_type="int64")
UTC_TIME = datetime(2023, 11, 14, 22, 13, 20, 123_999, UTC)
BEFORE_1970 = EventSettings(earliest="1900-01-01")

TABLE: list[Odd] = [
    *ids("leading zeros", "007", "007"),
    *ids("digits", "7", "7"),
    *ids("sign", "+7", "+7"),
    *ids("minus zero", "-0", "-0"),
    *ids("a fraction as text", "1.50", "1.50"),
    *ids("an exponent as text", "1e15", "1e15"),
    *ids("true as text", "true", "true"),
    *ids("NA as text", "NA", "NA"),
    *ids("null as text", "null", "null"),
    *ids("nan as text", "nan", "nan"),
    *ids("a date as text", "2023-11-14", "2023-11-14"),
    *ids("blanks", " a b ", " a b "),
    *ids("a quote", 'a"b', 'a"b'),
    *ids("a separator", "a,b", "a,b"),
    *ids("umlauts", "används-ü", "används-ü"),
    *ids("beyond the first plane", "\U0001f600", "\U0001f600"),
    *ids("not normalised", "u\u0308", "u\u0308"),
    *ids("a zero-width mark", "a\ufeffb", "a\ufeffb"),
    *ids("a line separator", "a\u2028b", "a\u2028b"),
    *ids("a no-break space", "a\xa0b", "a\xa0b"),
    *ids("empty", "", REFUSED),
    *ids("too long", "x" * 129, REFUSED),
    *ids("too long in bytes", "ü" * 65, REFUSED),
    *(
        odd
        for c in "\x00\x01\t\x1f\x7f\x80\x85\x9f"
        for odd in ids(f"control character {ord(c):#x}", f"a{c}b", REFUSED)
    ),
    *(odd for c in ("\n", "\r", "\r\n") for odd in ids(f"line end {c!r}", f"a{c}b", REFUSED)),
    *ids("an unpaired surrogate", "a\ud800", REFUSED, (*JSON_DOORS, from_csv, from_frame_of_objects)),
    *ids("an integer", 42, "42"),
    *ids("zero", 0, "0"),
    *ids("a negative integer", -7, "-7"),
    *ids("an integer beyond a float's", 12345678901234567, "12345678901234567"),
    *ids("the largest int64", 2**63 - 1, str(2**63 - 1)),
    *ids("the smallest int64", -(2**63), str(-(2**63))),
    *ids("beyond int64", 2**63, str(2**63), (*JSON_DOORS, from_csv, *COLUMN_DOORS, from_frame)),
    *ids("beyond uint64", 2**64 + 1, str(2**64 + 1), (*JSON_DOORS, from_csv, from_frame_of_objects)),
    *ids("beyond any integer type", 10**40, str(10**40), (*JSON_DOORS, from_csv, from_frame_of_objects)),
    *ids("true", True, REFUSED, TYPED),
    *ids("a float", 1.5, REFUSED, TYPED),
    *ids("a float that is whole", 1e15, REFUSED, TYPED),
    *ids("null", None, REFUSED, (*JSON_DOORS, from_avro, *COLUMN_DOORS, from_frame)),
    *ids("nothing", ABSENT, REFUSED),
    *ids("NaN", float("nan"), REFUSED, (from_avro, *COLUMN_DOORS, from_frame)),
    *ids("an object", {"$oid": "64b0"}, REFUSED, TYPED),
    *ids("a list", [1], REFUSED, TYPED),
    *ids("bytes of text", "ü".encode(), "ü", (from_avro, *COLUMN_DOORS, from_frame)),
    *ids("bytes of no text", b"\xff", REFUSED, (from_avro, *COLUMN_DOORS, from_frame)),
    *ids("a decimal", Decimal(7), "7", (from_avro, *COLUMN_DOORS, from_frame)),
    *ids("a large decimal", Decimal(10**19), str(10**19), (from_avro, *COLUMN_DOORS, from_frame)),
    *ids("a decimal with a fraction", Decimal("7.0"), REFUSED, (from_avro, *COLUMN_DOORS, from_frame)),
    *ids("a time", UTC_TIME, REFUSED, (from_avro, *COLUMN_DOORS, from_frame)),
    *ids("numpy's integer", np.int64(7), "7", (from_frame_of_objects, from_frame)),
    *ids("numpy's truth", np.bool_(True), REFUSED, (from_frame_of_objects, from_frame)),
    *ids("categories", pa.array(["007"]).dictionary_encode(), "007", (from_parquet, from_table)),
    *ids("large text", pa.array(["007"], pa.large_string()), "007", (from_parquet, from_table)),
    *ids("small integers", pa.array([7], pa.int8()), "7", (from_parquet, from_table)),
    *ids("unsigned integers", pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1), (from_parquet, from_table)),
    *ids("half floats", pa.array([np.float16(7)]), REFUSED, (from_parquet, from_table)),
    *ids("dates", pa.array([1], pa.date32()), REFUSED, (from_parquet, from_table)),
    *ids("durations", pa.array([1], pa.duration("ms")), REFUSED, (from_table,)),
    *ids("no type at all", pa.nulls(1), REFUSED, (from_parquet, from_table)),
    *(
        Odd(f"no int64: {value!r}, {field}", field, value, REFUSED, doors, INT64)
        for field in ("user_id", "item_id")
        for value, doors in [
            *((text, ALL) for text in ("abc", "007", "+7", "-0", " 7", "7.0", "١", str(2**63), "1_000")),
            (2**63, (*JSON_DOORS, from_csv, *COLUMN_DOORS, from_frame)),
        ]
    ),
    *(
        Odd(f"int64: {value!r}, {field}", field, value, str(value), ALL, INT64)
        for field in ("user_id", "item_id")
        for value in ("7", "-12", 42, 0, 2**63 - 1, str(-(2**63)))
    ),
    Odd("no surface, a constant", "surface", ABSENT, "app", ALL, EventSettings(defaults=EventDefaults(surface="app"))),
    Odd(
        "null as surface, a constant", "surface", None, "app", ALL, EventSettings(defaults=EventDefaults(surface="app"))
    ),
    Odd(
        "a surface, and a constant", "surface", "web", "web", ALL, EventSettings(defaults=EventDefaults(surface="app"))
    ),
    Odd("no action, a constant", "action", ABSENT, "view", ALL, EventSettings(defaults=EventDefaults(action="view"))),
]


def time(value: Any, expected: Any, doors: tuple[Door, ...] = ALL, settings: EventSettings = PLAIN) -> Odd:
    return Odd(f"time {value!r}", "timestamp", value, expected, doors, settings)


TABLE += [
    time(1_700_000_000_000, 1_700_000_000_000),
    time("1700000000000", 1_700_000_000_000),
    time("2023-11-14T22:13:20Z", 1_700_000_000_000),
    time("2023-11-14T22:13:20z", 1_700_000_000_000),
    time("2023-11-14t22:13:20Z", 1_700_000_000_000),
    time("2023-11-14 22:13:20Z", 1_700_000_000_000),
    time("2023-11-14T22:13Z", 1_699_999_980_000),
    time("2023-11-14T22Z", 1_699_999_200_000),
    time("20231114T221320Z", 1_700_000_000_000),
    time("2023-W46-2T22:13:20Z", 1_700_000_000_000),
    time("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
    time("2023-11-14T23:13:20+0100", 1_700_000_000_000),
    time("2023-11-14T23:13:20+01", 1_700_000_000_000),
    time("2023-11-14T22:13:20-00:00", 1_700_000_000_000),
    time("2023-11-14T17:43:20-04:30", 1_700_000_000_000),
    time("2023-11-14T22:13:20.1Z", 1_700_000_000_100),
    time("2023-11-14T22:13:20.123Z", 1_700_000_000_123),
    time("2023-11-14T22:13:20,123Z", 1_700_000_000_123),
    time("2023-11-14T22:13:20.1239Z", 1_700_000_000_123),
    time("2023-11-14T22:13:20.123999Z", 1_700_000_000_123),
    time("2023-11-14T22:13:20.999999999Z", 1_700_000_000_999),
    time("2023-11-14T22:13:20.123456789012345Z", 1_700_000_000_123),
    time("2023-11-14T23:13:20.9999+01:00", 1_700_000_000_999),
    time("1969-12-31T23:59:59.9999Z", -1, settings=BEFORE_1970),
    time("1969-12-31T23:59:59.0001Z", -1_000, settings=BEFORE_1970),
    time(-1, -1, settings=BEFORE_1970),
    time("-1", -1, settings=BEFORE_1970),
    time("2023-11-14T22:13:20", REFUSED),
    time("2023-11-14T22:13:20.123", REFUSED),
    time("2023-11-14", REFUSED),
    time("2023-11-14Z", REFUSED),
    time("2023-11-14T22:13:20 Z", REFUSED),
    time("2023-11-14x22:13:20Z", REFUSED),
    time("2023-11-14T22:13:20.Z", REFUSED),
    time("2023-11-14T22:13.5Z", REFUSED),
    time("2023-11-14T22:13:60Z", REFUSED),
    time("2023-11-14T24:00:00Z", REFUSED),
    time("2023-02-29T00:00:00Z", REFUSED),
    time("2023-318T22:13:20Z", REFUSED),
    time("2023-11-14T22:13:20+25:00", REFUSED),
    time("2023-11-14T22:13:20+01:00:30", REFUSED),
    time("2023-11-14T22:13:20 Europe/Berlin", REFUSED),
    time("Tue, 14 Nov 2023 22:13:20 GMT", REFUSED),
    time("14/11/2023", REFUSED),
    time("yesterday", REFUSED),
    time("", REFUSED),
    time(" 1700000000000", REFUSED),
    time("+1700000000000", REFUSED),
    time("1.7e12", REFUSED),
    time("1700000000000.0", REFUSED),
    time("١٧٠٠٠٠٠٠٠٠٠٠٠", REFUSED),
    time(1.7e12, REFUSED, TYPED),
    time(1_700_000_000_000.5, REFUSED, TYPED),
    time(True, REFUSED, TYPED),
    time(None, REFUSED),
    time(ABSENT, REFUSED),
    time({"$date": 1}, REFUSED, TYPED),
    time(1_700_000_000, REFUSED),  # seconds
    time(1_700_000_000_000_000, REFUSED),  # microseconds
    time("20231114", REFUSED),  # ms, in 1970
    time(NOW + 300_000, NOW + 300_000),
    time(NOW + 300_001, REFUSED),
    time(2**70, REFUSED, (*JSON_DOORS, from_csv, from_frame_of_objects)),
    time(UTC_TIME, 1_700_000_000_123, (from_avro, *COLUMN_DOORS, from_frame)),
    time(UTC_TIME.astimezone(timezone(timedelta(hours=5))), 1_700_000_000_123, (from_avro, *COLUMN_DOORS, from_frame)),
    time(UTC_TIME.replace(tzinfo=None), REFUSED, (from_avro, *COLUMN_DOORS, from_frame)),
    time(datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), -1, (from_avro, *COLUMN_DOORS, from_frame), BEFORE_1970),
    time(pd.Timestamp("2023-11-14T22:13:20.123999999Z"), 1_700_000_000_123, (from_frame, from_frame_of_objects)),
    time(pd.NaT, REFUSED, (from_frame, from_frame_of_objects)),
    time(Decimal(1_700_000_000_000), 1_700_000_000_000, (from_avro, *COLUMN_DOORS, from_frame)),
    *(
        time(pa.array([number], pa.timestamp(unit, "Europe/Berlin")), expected, (from_parquet, from_table), BEFORE_1970)
        for unit, number, expected in [
            ("s", 1_700_000_000, 1_700_000_000_000),
            ("ms", 1_700_000_000_123, 1_700_000_000_123),
            ("us", 1_700_000_000_123_999, 1_700_000_000_123),
            ("us", -1, -1),
            ("ns", 1_700_000_000_123_999_999, 1_700_000_000_123),
            ("ns", -1, -1),
            ("us", 2**62, REFUSED),
        ]
    ),
    time(pa.array([2**62], pa.timestamp("s", "UTC")), REFUSED, (from_table,)),
    time(pa.array([1_700_000_000_123], pa.timestamp("ms")), REFUSED, (from_parquet, from_table)),
    time(pa.array([19_675], pa.date32()), REFUSED, (from_parquet, from_table)),
]


@pytest.mark.parametrize("odd", TABLE, ids=lambda odd: re.sub(" at 0x[0-9a-f]+", "", odd.name))
def test_a_value_means_the_same_at_every_door(odd: Odd, tmp_path: Path):
    row = GOOD | {name: "1" for name in ("user_id", "item_id") if odd.settings is INT64} | {odd.field: odd.value}
    row = {name: value for name, value in row.items() if value is not ABSENT}
    expected = None
    if odd.expected is not REFUSED:
        expected = Event(**{**GOOD, **row, odd.field: odd.expected})
    found = {door.__name__: door(row, odd.settings, tmp_path) for door in odd.doors}
    assert found == {door.__name__: expected for door in odd.doors}


NAMES = EventSettings(
    fields=EventFields("userId", "payload.item.id", "event", "payload.screen", "ts"),
    defaults=EventDefaults(surface="app"),
)


@pytest.mark.parametrize("door", [*JSON_DOORS, from_avro, from_parquet, from_table, from_frame_of_objects])
@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"item": {"id": 7, "kind": "x"}, "screen": "home"}, ("7", "home")),
        ({"item": {"id": "7"}, "screen": None}, ("7", "app")),
        ({"item": {"id": "7"}}, ("7", "app")),
        ({"item": {"id": None}, "screen": "home"}, REFUSED),
        ({"item": "7", "screen": "home"}, REFUSED),
    ],
)
def test_fields_are_found_under_the_configured_names(door: Door, payload: Any, expected: Any, tmp_path: Path):
    row = {"ts": "2023-11-14T22:13:20Z", "payload": payload, "event": "v", "userId": 42, "user_id": "not this"}
    event = expected and Event("42", expected[0], "v", expected[1], 1_700_000_000_000)
    assert door(row, NAMES, tmp_path) == event


@pytest.mark.parametrize("door", ALL)
def test_a_name_with_a_dot_is_first_that_of_a_field(door: Door, tmp_path: Path):
    if door is from_avro:
        pytest.skip("Avro's names have no dots")
    settings = EventSettings(fields=EventFields(user_id="user.id"))
    row = {"user.id": "007"} | {name: value for name, value in GOOD.items() if name != "user_id"}
    assert door(row, settings, tmp_path) == Event("007", "i", "v", "s", 1_700_000_000_000)
