"""Dead letters for people: list them, and send them through the stream again once the cause is gone.

A replay produces the original key and value to the activity topic and then closes the dead letter (a record without
value under its key). It is safe to repeat and to interrupt: a letter that was produced but not yet closed is produced
again, which the histories' merge ignores. A record that fails again becomes a new dead letter, under the offset that
it now has, and names in `replay_of` the first one. A letter that turns out to be a forgotten user's past is closed
without being sent: it would lie on the activity topic for another retention.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from activity.errors import InfrastructureError, UsageError
from activity.events import decode_event
from activity.forgotten import ForgottenUsers
from activity.settings import EventSettings, KafkaSettings
from streaming.broker import admin_client, kafka_errors
from streaming.dead_letters import REPLAY_HEADER, DeadLetter, decode_dead_letter
from streaming.settings import WorkerSettings

_CHUNK = 500  # letters between two waits for the broker's acknowledgement
Place = tuple[int, int]  # partition and offset in the dead-letter topic


@dataclass(frozen=True)
class ReplayResult:
    replayed: int  # with dry_run: would be
    by_reason: Mapping[str, int]
    dry_run: bool
    forgotten: int = 0  # closed without being sent, or with dry_run, would be: the past of users who were forgotten


def list_dead_letters(
    settings: WorkerSettings, *, limit: int | None = None, reason: str | None = None
) -> list[DeadLetter]:
    """The open dead letters, each origin once, by time of the origin; with `limit` the newest ones, and no more than
    these in memory.

    Raises UsageError where there is no dead-letter topic, DataError for a record in it that is not a dead letter,
    InfrastructureError if Kafka does not answer."""
    letters = _letters(settings.kafka, _open_places(settings.kafka), reason)
    return sorted(letters, key=_age) if limit is None else heapq.nlargest(limit, letters, key=_age)[::-1]


def oldest_letter_ms(settings: WorkerSettings) -> int | None:
    """When the broker appended the oldest record that is an open dead letter; None without one. A letter that was
    replayed before counts as of 1970: of its first origin it knows the offset, not the time. Raises as
    `list_dead_letters`."""
    letters = _letters(settings.kafka, _open_places(settings.kafka), None)
    return min((letter.append_time_ms if letter.replay_of is None else 0 for letter in letters), default=None)


def replay_dead_letters(
    settings: WorkerSettings,
    *,
    reason: str | None = None,
    dry_run: bool = False,
    forgotten: ForgottenUsers | None = None,
) -> ReplayResult:
    """Produces the open dead letters (of one reason, or all) to the activity topic again and closes them. `forgotten`:
    the lake's list of users whose past is closed alone. Raises as `list_dead_letters`, and InfrastructureError for a
    schema registry that does not answer."""

    def is_past(letter: DeadLetter) -> bool:
        return forgotten is not None and len(forgotten) > 0 and _is_past(letter, forgotten, settings.events)

    places = _open_places(settings.kafka)
    counts: Counter[str] = Counter()
    past = 0
    for letter in _letters(settings.kafka, places, reason):  # all of them can be read
        if is_past(letter):
            past += 1
        else:
            counts[letter.reason] += 1
    if (counts or past) and not dry_run:
        _replay(settings.kafka, _letters(settings.kafka, places, reason), is_past)
    return ReplayResult(counts.total(), dict(sorted(counts.items())), dry_run, past)


def _is_past(letter: DeadLetter, forgotten: ForgottenUsers, events: EventSettings) -> bool:
    """Whether the record is by now an event, of a forgotten user's past. What is none still, the stream refuses."""
    try:
        event = decode_event(letter.value, append_time_ms=time.time_ns() // 1_000_000, settings=events)
    except InfrastructureError:
        raise
    except Exception:  # as in the stream: no bytes, whatever they provoke, may stop the others
        return False
    return event.timestamp <= forgotten.through([event.user_id])[0]


def _replay(kafka: KafkaSettings, letters: Iterator[DeadLetter], is_past: Callable[[DeadLetter], bool]) -> None:
    with _producer(kafka) as producer:
        while chunk := list(islice(letters, _CHUNK)):
            produced = [
                producer.send(kafka.topic, key=_key(letter), value=letter.value, headers=_header(letter))
                for letter in chunk
                if not is_past(letter)
            ]
            _acknowledged(produced, kafka)
            closed = [
                producer.send(kafka.dead_letter_topic, key=letter.origin.encode(), value=None) for letter in chunk
            ]
            _acknowledged(closed, kafka)


def _key(letter: DeadLetter) -> bytes | None:
    """The original key. The client refuses records with neither key nor value: those get an empty key."""
    return b"" if letter.key is None and letter.value is None else letter.key


def _header(letter: DeadLetter) -> list[tuple[str, bytes]]:
    return [(REPLAY_HEADER, (letter.replay_of or letter.origin).encode())]


def _acknowledged(sent: Iterable[Any], kafka: KafkaSettings) -> None:
    for future in sent:
        future.get(timeout=2 * kafka.request_timeout_seconds)


def _age(letter: DeadLetter) -> tuple[int, str, int, int]:
    return (letter.append_time_ms, letter.topic, letter.partition, letter.offset)


def _open_places(kafka: KafkaSettings) -> set[Place]:
    """Where the last record of each key lies, if it has a value. Contents are left out: there may be any number."""
    last: dict[bytes, Place | None] = {}
    for record in _records(kafka):
        last[record.key] = None if record.value is None else (record.partition, record.offset)
    return {place for place in last.values() if place is not None}


def _letters(kafka: KafkaSettings, places: Collection[Place], reason: str | None) -> Iterator[DeadLetter]:
    """The letters at these places, read one poll at a time."""
    for record in _records(kafka) if places else ():
        if (record.partition, record.offset) in places:
            letter = decode_dead_letter(record.value)
            if reason is None or letter.reason == reason:
                yield letter


def _records(kafka: KafkaSettings) -> Iterator[Any]:
    """Every record of the dead-letter topic up to its present end, in order within each partition."""
    from kafka import KafkaConsumer, TopicPartition

    with admin_client(kafka) as admin:
        if kafka.dead_letter_topic not in admin.list_topics():
            raise UsageError(
                f"no topic `{kafka.dead_letter_topic}` at {kafka.address}",
                hint="`spoor stream` creates it; check kafka.dead_letter_topic",
            )
    with kafka_errors(kafka):
        options: Any = kafka.consumer_options() | {"auto_offset_reset": "earliest"}
        consumer = KafkaConsumer(**options)
        try:
            partitions = consumer.partitions_for_topic(kafka.dead_letter_topic) or set()
            topic_partitions = [TopicPartition(kafka.dead_letter_topic, p) for p in sorted(partitions)]
            consumer.assign(topic_partitions)
            ends = consumer.end_offsets(topic_partitions)
            yield from _until(consumer, ends, timeout_seconds=2 * kafka.request_timeout_seconds)
        finally:
            consumer.close()


def _until(consumer: Any, ends: Mapping[Any, int], *, timeout_seconds: float) -> Iterator[Any]:
    deadline = time.monotonic() + timeout_seconds
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        for records in consumer.poll(timeout_ms=500).values():
            deadline = time.monotonic() + timeout_seconds
            yield from records
        if time.monotonic() > deadline:
            raise TimeoutError(f"no record of the dead-letter topic within {timeout_seconds:.0f} s")


@contextmanager
def _producer(kafka: KafkaSettings) -> Iterator[Any]:
    from kafka import KafkaProducer

    with kafka_errors(kafka):
        options: Any = kafka.client_options() | {"max_request_size": 64 * 1024 * 1024}
        producer = KafkaProducer(**options)
        try:
            yield producer
        finally:
            producer.close()
