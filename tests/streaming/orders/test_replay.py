"""Dead letters on the genuine broker, put there without a worker: what is listed, and what a replay produces."""

import dataclasses
from pathlib import Path

import pytest
from kafka import KafkaProducer

from spoor.activity.events import Event, encode_event
from spoor.activity.forgotten import ForgottenUsers
from spoor.base.errors import DataError, UsageError
from spoor.broker.create_topics import ensure_topics
from spoor.config import Settings
from spoor.streaming.orders.replay import list_dead_letters, oldest_letter_ms, replay_dead_letters
from spoor.streaming.records.dead_letters import REPLAY_HEADER, DeadLetter, encode_dead_letter
from tests.topics import topic_records


@pytest.fixture
def settings(kafka_settings: Settings) -> Settings:
    ensure_topics(kafka_settings.kafka, releases=[])
    return kafka_settings


def letter(offset: int, key: bytes | None, value: bytes | None) -> DeadLetter:
    return DeadLetter("activity", 0, offset, 10 - offset, "not-json", "value", "x", "JSON", "EventError", key, value)


def put(settings: Settings, *letters: tuple[bytes, bytes]) -> None:
    with KafkaProducer(**settings.kafka.client_options()) as producer:
        for key, value in letters:
            producer.send(settings.kafka.dead_letter_topic, key=key, value=value)
        producer.flush()


def replayed(settings: Settings) -> list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]:
    records = topic_records(settings.kafka, settings.kafka.topic)
    return [(record.key, record.value, list(record.headers)) for record in records]


def test_a_replay_keeps_key_and_value_and_a_record_with_neither_does_not_stop_it(settings: Settings):
    contents = [(b"k", b"v"), (None, b"v"), (b"k", None), (b"", b""), (None, None)]
    put(settings, *(encode_dead_letter(letter(n, *content)) for n, content in enumerate(contents)))
    assert [found.offset for found in list_dead_letters(settings)] == [4, 3, 2, 1, 0]  # by time of the origin
    assert replay_dead_letters(settings).replayed == 5
    expected = [(*content, f"activity/0/{n}") for n, content in enumerate(contents[:4])] + [(b"", None, "activity/0/4")]
    found = [(key, value, dict(headers)[REPLAY_HEADER].decode()) for key, value, headers in replayed(settings)]
    assert sorted(found, key=lambda row: row[2]) == expected
    assert list_dead_letters(settings) == []


def test_the_newest_of_the_open_letters_are_listed_and_closed_ones_are_not(settings: Settings):
    letters = [letter(n, b"k", b"v") for n in range(6)]
    put(settings, *map(encode_dead_letter, letters), encode_dead_letter(letters[3]))  # redelivered, refused again
    with KafkaProducer(**settings.kafka.client_options()) as producer:
        producer.send(settings.kafka.dead_letter_topic, key=letters[1].origin.encode(), value=None)
    assert [found.offset for found in list_dead_letters(settings)] == [5, 4, 3, 2, 0]
    assert [found.offset for found in list_dead_letters(settings, limit=2)] == [2, 0]
    assert list_dead_letters(settings, limit=0) == []
    assert replay_dead_letters(settings, dry_run=True).replayed == 5 and replayed(settings) == []


def test_a_forgotten_user_s_past_is_closed_without_being_sent(settings: Settings, tmp_path: Path):
    """It would lie on the activity topic for another retention, and outlast the user's marker."""
    contents = [encode_event(Event(user, "i", "view", "web", time)) for user, time in _PAST_AND_OTHERS] + [b"no json"]
    put(settings, *(encode_dead_letter(letter(n, b"k", value)) for n, value in enumerate(contents)))
    forgotten = ForgottenUsers(tmp_path / "forgotten.json")
    forgotten.add(["ann"], through_ms=_NOW_MS, at_ms=_NOW_MS)
    planned = replay_dead_letters(settings, forgotten=forgotten, dry_run=True)
    assert (planned.replayed, planned.forgotten) == (3, 1) and replayed(settings) == []
    done = replay_dead_letters(settings, forgotten=forgotten)
    assert (done.replayed, done.forgotten, done.by_reason) == (3, 1, {"not-json": 3})
    assert sorted(value or b"" for _, value, _ in replayed(settings)) == sorted(contents[1:])
    assert list_dead_letters(settings) == []
    assert replay_dead_letters(settings, forgotten=forgotten).forgotten == 0


_NOW_MS = 1_700_000_000_000
_PAST_AND_OTHERS = [("ann", _NOW_MS), ("ann", _NOW_MS + 1), ("bob", _NOW_MS)]


def test_the_oldest_open_letter_tells_its_time_and_one_that_was_replayed_before_may_be_of_any(settings: Settings):
    assert oldest_letter_ms(settings) is None
    put(settings, *(encode_dead_letter(letter(n, b"k", b"v")) for n in range(4)))
    assert oldest_letter_ms(settings) == 10 - 3
    with KafkaProducer(**settings.kafka.client_options()) as producer:
        producer.send(settings.kafka.dead_letter_topic, key=letter(3, b"", b"").origin.encode(), value=None)
    assert oldest_letter_ms(settings) == 10 - 2
    again = dataclasses.replace(letter(9, b"k", b"v"), replay_of="activity/0/0")
    put(settings, encode_dead_letter(again))
    assert oldest_letter_ms(settings) == 0


def test_a_record_of_somebody_else_among_the_dead_letters_is_named(settings: Settings):
    put(settings, (b"key", b"their value"))
    with pytest.raises(DataError, match="is not a dead letter") as raised:
        replay_dead_letters(settings)
    assert raised.value.hint
    assert replayed(settings) == []


def test_a_missing_topic_is_named(settings: Settings):
    kafka = dataclasses.replace(settings.kafka, dead_letter_topic="not-there")
    with pytest.raises(UsageError, match="`not-there`"):
        list_dead_letters(dataclasses.replace(settings, kafka=kafka))
