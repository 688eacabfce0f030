"""Records in, events and dead letters out, with lists."""

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoor.activity.events import Event, encode_event, events_table
from spoor.activity.hashing import hash_item
from spoor.activity.history import history_values
from spoor.activity.settings import EventSettings
from spoor.broker.topics import ENVELOPE_BYTES
from spoor.streaming.records.core import DecodedBatch, decode_batch, event_values, group_batch, lost_range
from spoor.streaming.records.dead_letters import REPLAY_HEADER, encode_dead_letter
from tests.streaming.memory import record as record_of

NOW = 1_750_000_000_000
SETTINGS = EventSettings(actions=("view", "like"), surfaces=("home",))


def event(user="u1", item="i1", action="view", surface="home", timestamp=NOW) -> Event:
    return Event(user, item, action, surface, timestamp)


record = partial(record_of, append_time_ms=NOW)


def changed(**fields: object) -> bytes:
    """A good event's JSON with some fields replaced; a field set to ... is left out."""
    whole = event()._asdict() | fields
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (None, "no-value", "value"),
        (b"", "not-json", "value"),
        (b"not json", "not-json", "value"),
        (b"\xff\xfe", "not-json", "value"),
        (b"[]", "not-json", "value"),
        (b"null", "not-json", "value"),
        (b"NaN", "not-json", "value"),
        (b"{" * 10_000, "not-json", "value"),
        (b"[" * 16_000, "not-json", "value"),
        (changed(user_id="x" * 20_000), "too-large", "value"),
        (changed(user_id="x" * 129), "bad-length", "user_id"),
        (changed(user_id=""), "bad-length", "user_id"),
        (changed(user_id=7.0), "bad-type", "user_id"),
        (changed(user_id=...), "missing-field", "user_id"),
        (changed(item_id=None), "missing-field", "item_id"),
        (changed(item_id=...), "missing-field", "item_id"),
        (changed(item_id="a\nb"), "bad-text", "item_id"),
        (changed(action=...), "missing-field", "action"),
        (changed(surface=["home"]), "bad-type", "surface"),
        (changed(timestamp=...), "missing-field", "timestamp"),
        (changed(timestamp=1.5), "bad-type", "timestamp"),
        (changed(timestamp=True), "bad-type", "timestamp"),
        (changed(timestamp=2**64), "bad-type", "timestamp"),
        (changed(timestamp="yesterday"), "bad-type", "timestamp"),
        (changed(timestamp="2026-01-01T00:00:00"), "bad-type", "timestamp"),
        (changed(timestamp=NOW + 300_001), "in-the-future", "timestamp"),
        (changed(timestamp=0), "too-early", "timestamp"),
        (changed(timestamp=-1), "too-early", "timestamp"),
    ],
)
def test_what_breaks_the_contract_becomes_a_dead_letter_with_its_origin_and_bytes(value, reason, field):
    decoded = decode_batch([record(value, key=b"k", offset=42, partition=3)], SETTINGS)
    assert decoded.events == []
    (letter,) = decoded.dead_letters
    assert (letter.reason, letter.field, letter.error) == (reason, field, "EventError")
    assert letter.origin == "activity/3/42"
    assert (letter.key, letter.value, letter.append_time_ms) == (b"k", value, NOW)


@pytest.mark.parametrize("timestamp", [NOW + 300_000, "2025-06-15T15:06:40+00:00", 631_152_000_000])
def test_times_up_to_the_limits_are_accepted(timestamp):
    assert len(decode_batch([record(changed(timestamp=timestamp))], SETTINGS).events) == 1


def test_good_records_around_a_bad_one_are_kept_in_order():
    values = [changed(item_id="a"), b"bad", changed(item_id="b")]
    decoded = decode_batch([record(value, offset=n) for n, value in enumerate(values)], SETTINGS)
    assert [e.item_id for e in decoded.events] == ["a", "b"]
    assert [letter.offset for letter in decoded.dead_letters] == [1]


def test_an_empty_batch_is_empty():
    decoded = decode_batch([], SETTINGS)
    assert (decoded.events, decoded.dead_letters, len(decoded.append_times_ms)) == ([], [], 0)


@pytest.mark.parametrize(("key", "mismatches"), [(b"u1", 0), (b"u2", 1), (None, 1), (b"", 1)])
def test_a_key_that_is_not_the_user_id_is_counted_and_the_event_kept(key, mismatches):
    decoded = decode_batch([record(changed(), key=key)], SETTINGS)
    assert (len(decoded.events), decoded.mismatched_keys) == (1, mismatches)


def test_unknown_names_are_counted_and_kept():
    values = [changed(action="dance"), changed(action="dance", surface="moon"), changed()]
    decoded = decode_batch(map(record, values), SETTINGS)
    assert len(decoded.events) == 3
    assert decoded.unknown_names == {"action": 2, "surface": 1}


def test_unknown_names_become_dead_letters_where_the_settings_say_so():
    settings = EventSettings(actions=("view",), unknown_names="dead-letter")
    decoded = decode_batch(map(record, [changed(action="dance"), changed()]), settings)
    assert [letter.reason for letter in decoded.dead_letters] == ["unknown-action"]
    assert len(decoded.events) == 1


def test_a_replayed_record_that_fails_again_names_the_first_dead_letter():
    headers = [("trace", b"x"), (REPLAY_HEADER, b"activity/0/7")]
    (letter,) = decode_batch([record(b"bad", offset=99, headers=headers)], SETTINGS).dead_letters
    assert (letter.origin, letter.replay_of) == ("activity/0/99", "activity/0/7")


@pytest.mark.parametrize("header", [None, b"\xff\xfe", b"x" * 100_000])
def test_no_header_stops_the_worker_or_makes_the_letter_too_large(header):
    (letter,) = decode_batch([record(b"bad", headers=[(REPLAY_HEADER, header)])], SETTINGS).dead_letters
    assert len(encode_dead_letter(letter)[1]) < ENVELOPE_BYTES


@given(st.lists(st.one_of(st.none(), st.binary(max_size=60), st.just(changed()))))
def test_every_record_becomes_exactly_one_event_or_dead_letter(values):
    records = [record(value, offset=n) for n, value in enumerate(values)]
    decoded = decode_batch(records, SETTINGS)
    assert len(decoded.events) + len(decoded.dead_letters) == len(values)
    assert len({letter.origin for letter in decoded.dead_letters}) == len(decoded.dead_letters)


def decoded(*rows: tuple[Event, int, int]) -> DecodedBatch:
    """Rows of (event, append time, partition), through the decoder."""
    records = [
        record(encode_event(event), append_time_ms=time, partition=partition, key=event.user_id.encode())
        for event, time, partition in rows
    ]
    return decode_batch(records, SETTINGS)


def test_events_are_grouped_by_user_oldest_first_and_once():
    rows = [
        (event("b", timestamp=NOW), NOW + 5, 0),
        (event("a", item="late", timestamp=NOW - 10), NOW + 6, 0),
        (event("b", timestamp=NOW - 20), NOW + 7, 0),
        (event("b", timestamp=NOW), NOW + 8, 0),
    ]
    batch = group_batch(decoded(*rows), max_events=16, as_of="append")
    assert batch.user_ids == ["b", "a"]
    assert batch.events[0]["timestamp"].tolist() == [NOW - 20, NOW]
    assert batch.events[1]["item"].tolist() == [hash_item("late")]


def test_only_the_newest_events_of_a_user_go_on():
    rows = [(event(timestamp=NOW - n), NOW, 0) for n in range(5)]
    batch = group_batch(decoded(*rows), max_events=3, as_of="append")
    assert batch.events[0]["timestamp"].tolist() == [NOW - 2, NOW - 1, NOW]


def test_as_of_is_the_latest_append_time_or_the_latest_event_time():
    rows = [
        (event("a", timestamp=NOW - 50), NOW + 9, 0),
        (event("a", timestamp=NOW - 40), NOW + 3, 0),
        (event("b", timestamp=NOW - 30), NOW + 4, 0),
    ]
    assert group_batch(decoded(*rows), max_events=8, as_of="append").as_of_ms.tolist() == [NOW + 9, NOW + 4]
    assert group_batch(decoded(*rows), max_events=8, as_of="event").as_of_ms.tolist() == [NOW - 40, NOW - 30]


def test_a_user_belongs_to_the_partition_of_the_newest_record():
    rows = [(event("a"), NOW, 2), (event("b"), NOW, 1), (event("a", item="i2"), NOW, 3)]
    assert group_batch(decoded(*rows), max_events=8, as_of="append").partitions == [3, 1]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_events_are_hashed_as_in_an_arrow_table(count: int):
    events = [event(item=f"i{n % 3}", action=f"a{n % 2}", surface=f"s{n % 5}", timestamp=NOW + n) for n in range(count)]
    assert event_values(events).tolist() == history_values(events_table(events)).tolist()


def test_as_of_is_int64():
    assert group_batch(decoded((event(), NOW, 0)), max_events=8, as_of="append").as_of_ms.dtype == np.int64


@pytest.mark.parametrize(
    ("committed", "earliest", "lost"),
    [(None, 5, None), (-1, 5, None), (5, 5, None), (6, 5, None), (0, 0, None), (0, 1, (0, 1)), (3, 10, (3, 10))],
)
def test_a_range_is_lost_where_the_committed_offset_is_gone(committed, earliest, lost):
    assert lost_range(committed=committed, earliest=earliest) == lost
