import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoor.activity.events import (
    EVENT_SCHEMA,
    LATEST_MS,
    Event,
    decode_event,
    encode_event,
    event_encoder,
    events_table,
    unknown_names,
)
from spoor.activity.history import group_events, history_values
from spoor.activity.packing import pack
from spoor.activity.settings import EventFields, EventSettings
from spoor.base.errors import EventError

NOW = 1_800_000_000_000
EVENT = Event("u1", "i1", "view", "home", NOW - 5)
SETTINGS = EventSettings()


def value(**changes):
    fields = EVENT._asdict() | changes
    return json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()


def decode(data, settings=SETTINGS):
    return decode_event(data, append_time_ms=NOW, settings=settings)


def refused(data, settings=SETTINGS) -> EventError:
    with pytest.raises(EventError) as error:
        decode(data, settings)
    return error.value


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=15)


@given(st.builds(Event, text, text, text, text, st.integers(SETTINGS.earliest_ms, NOW)))
def test_decode_gives_back_what_was_encoded(event):
    assert decode(encode_event(event)) == event


def test_iso_times_with_a_zone_are_read_as_milliseconds():
    assert decode(value(timestamp="2026-01-31T01:00:00.123+01:00")).timestamp == 1769817600123
    assert decode(value(timestamp="2026-01-31T00:00:00Z")).timestamp == 1769817600000


@pytest.mark.parametrize(
    ("data", "reason", "field"),
    [
        (None, "no-value", "value"),
        (b"", "not-json", "value"),
        (b"\xff", "not-json", "value"),
        (b"[" * 5000, "not-json", "value"),
        (b"[1]", "not-json", "value"),
        (b'{"timestamp": NaN}', "not-json", "value"),
        (b" " * 20_000, "too-large", "value"),
        (value(user_id=...), "missing-field", "user_id"),
        (value(item_id=7.0), "bad-type", "item_id"),
        (value(item_id=True), "bad-type", "item_id"),
        (value(item_id=None), "missing-field", "item_id"),
        (value(item_id={"$oid": "64b0"}), "bad-type", "item_id"),
        (value(item_id=""), "bad-length", "item_id"),
        (value(item_id="i" * 129), "bad-length", "item_id"),
        (value(action="a" * 65), "bad-length", "action"),
        (value(surface="a\nb"), "bad-text", "surface"),
        (value(surface="a\x7f"), "bad-text", "surface"),
        (value(surface="a\x85"), "bad-text", "surface"),
        (value()[:-1] + b',"item_id":"i2"}', "repeated-field", "item_id"),
        (value(note=...)[:-1] + b',"note":' + b"[" * 100 + b"]" * 100 + b"}", "not-json", "value"),
        (value(user_id="\ud800"), "bad-text", "user_id"),
        (value(timestamp=...), "missing-field", "timestamp"),
        (value(timestamp=1.5), "bad-type", "timestamp"),
        (value(timestamp=True), "bad-type", "timestamp"),
        (value(timestamp="2026-01-31T00:00:00"), "bad-type", "timestamp"),
        (value(timestamp="yesterday"), "bad-type", "timestamp"),
        (value(timestamp=2**70), "bad-type", "timestamp"),
        (value(timestamp=NOW // 1000), "too-early", "timestamp"),
        (value(timestamp=NOW + 300_001), "in-the-future", "timestamp"),
    ],
)
def test_what_cannot_be_accepted_names_reason_field_found_and_expected(data, reason, field):
    error = refused(data)
    assert (error.reason, error.field) == (reason, field)
    assert error.found and error.expected and len(str(error)) < 300


def test_the_skew_is_counted_from_the_append_time():
    assert decode(value(timestamp=NOW + 300_000)).timestamp == NOW + 300_000


@pytest.mark.parametrize("append_time_ms", [LATEST_MS + 1, 2**62])
def test_times_that_no_history_can_carry_are_refused_whatever_time_the_record_claims(append_time_ms):
    with pytest.raises(EventError) as error:
        decode_event(value(), append_time_ms=append_time_ms, settings=SETTINGS)
    assert (error.value.reason, error.value.field) == ("in-the-future", "append time")
    with pytest.raises(EventError) as error:
        decode_event(value(timestamp=LATEST_MS + 1), append_time_ms=LATEST_MS, settings=SETTINGS)
    assert (error.value.reason, error.value.field) == ("in-the-future", "timestamp")
    last = decode_event(value(timestamp=LATEST_MS), append_time_ms=LATEST_MS, settings=SETTINGS)
    assert pack(group_events(["u1"], history_values(events_table([last])), max_events=1)[1])


def test_names_that_are_not_configured_are_kept_or_refused_by_setting():
    keep = EventSettings(actions=("like",), surfaces=("home",))
    assert unknown_names(decode(value(), keep), keep) == ("action",)
    assert unknown_names(decode(value()), SETTINGS) == ()
    strict = EventSettings(actions=("like",), unknown_names="dead-letter")
    assert refused(value(), strict).reason == "unknown-action"


@pytest.mark.parametrize("user_id", ["u1", "01", "+1", " 1", "1.0", str(2**63)])
def test_user_ids_that_are_no_int64_are_refused_where_feast_has_integers(user_id):
    settings = EventSettings(user_id_type="int64")
    assert refused(value(user_id=user_id), settings).field == "user_id"
    assert decode(value(user_id="-12"), settings).user_id == "-12"


def test_a_table_of_events_has_the_schema_even_when_empty():
    assert events_table([]).schema == events_table([EVENT]).schema == EVENT_SCHEMA
    assert events_table([EVENT]).to_pylist() == [EVENT._asdict()]


def test_what_is_written_under_other_names_is_read_back():
    settings = EventSettings(fields=EventFields("userId", "payload.item.id", "type", "payload.screen", "ts"))
    data = event_encoder(settings, "activity")(EVENT)
    assert json.loads(data) == {
        "userId": "u1", "payload": {"item": {"id": "i1"}, "screen": "home"}, "type": "view", "ts": NOW - 5,
    }  # fmt: skip
    assert decode(data, settings) == EVENT
    assert refused(data).reason == "missing-field"


@pytest.mark.parametrize(
    ("nested", "accepted"),
    [
        ("[" * 99 + "]" * 99, True),
        ("[" * 100 + "]" * 100, False),
        ('{"a":' * 99 + "1" + "}" * 99, True),
        ('{"a":' * 100 + "1" + "}" * 100, False),
        ('{"a":[' * 485 + "]}" * 485, False),
        ("[" + "[]," * 2_000 + "[]]", True),
        ('"' + "[" * 5_000 + '"', True),
        ('"' + '\\"[{' * 2_000 + '"', True),
    ],
)
def test_ignored_fields_may_be_nested_to_one_limit_whatever_the_stack(nested, accepted):
    data = value(note=...)[:-1] + b',"note":' + nested.encode() + b"}"

    def verdict(stack):
        if stack:
            return verdict(stack - 1)
        try:
            return decode(data) == EVENT
        except EventError as error:
            assert error.reason == "not-json"
            return False

    assert [verdict(stack) for stack in (0, 500)] == [accepted, accepted]


def test_a_name_that_comes_twice_counts_only_where_it_is_an_event_s():
    assert decode(value()[:-1] + b',"note":{"a":1,"a":2},"more":1,"more":2}') == EVENT
