"""Dead letters for people: list them, and send them through the stream again once the cause is gone.

A replay produces the original key and value to the activity topic and then closes the dead letter (a record without
value under its key). It is safe to repeat and to interrupt: a letter that was produced but not yet closed is produced
again, which the histories' merge ignores. A record that fails again becomes a new dead letter, under the offset that
it now has, and names in `replay_of` the first one. Two kinds are closed without being sent: a forgotten user's past,
which would lie on the activity topic for another retention, and a reference whose record is gone.

A reference (streaming/records/dead_letters.py) is looked up at its origin; the digest tells whether it is that record.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from spoor.activity.events import decode_event
from spoor.activity.forgotten import ForgottenUsers
from spoor.activity.settings import EventSettings
from spoor.base.errors import InfrastructureError
from spoor.broker.producer import Producer, Record
from spoor.broker.reader import KafkaRange, TopicReader
from spoor.broker.settings import KafkaSettings
from spoor.broker.topics import no_such_topic
from spoor.streaming.kafka.broker import MAX_REQUEST_BYTES
from spoor.streaming.records.dead_letters import REPLAY_HEADER, DeadLetter, decode_dead_letter, digest
from spoor.streaming.settings import WorkerSettings

log = logging.getLogger(__name__)

_CHUNK = 500  # letters between two waits for the broker's acknowledgement
_CHUNK_BYTES = 16 * 1024 * 1024  # of their records, unless one is larger
Place = tuple[int, int]  # partition and offset in the dead-letter topic


@dataclass(frozen=True)
class ReplayResult:
    replayed: int  # with dry_run: would be
    by_reason: Mapping[str, int]
    dry_run: bool
    forgotten: int = 0  # closed without being sent, or with dry_run, would be: the past of users who were forgotten
    gone: int = 0  # closed without being sent, or with dry_run, would be: references whose record is deleted
    too_large: int = 0  # still open: the activity topic refuses their size


def list_dead_letters(
    settings: WorkerSettings, *, limit: int | None = None, reason: str | None = None
) -> list[DeadLetter]:
    """The open dead letters, each origin once, by time of the origin; with `limit` the newest ones, and no more than
    these in memory. References come with key and value where their records are still there.

    Raises UsageError where there is no dead-letter topic, DataError for a record in it that is not a dead letter,
    InfrastructureError if Kafka does not answer."""
    letters = _letters(settings.kafka, _open_places(settings.kafka), reason)
    chosen = sorted(letters, key=_age) if limit is None else heapq.nlargest(limit, letters, key=_age)[::-1]
    return list(_looked_up(settings.kafka, chosen))


def oldest_letter_ms(settings: WorkerSettings) -> int | None:
    """When the broker appended the oldest record that is an open dead letter; None without one. A letter that was
    replayed before counts as of 1970: of its first origin it knows the offset, not the time. References to the activity
    topic do not count: they hold nothing that is older than its oldest record. Raises as `list_dead_letters`."""
    letters = (
        letter
        for letter in _letters(settings.kafka, _open_places(settings.kafka), None)
        if not (letter.is_reference and letter.topic == settings.kafka.topic)
    )
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

    kafka = settings.kafka
    places = _open_places(kafka)
    counts: Counter[str] = Counter()
    past = gone = 0
    for letter in _looked_up(kafka, _letters(kafka, places, reason)):  # all of them can be read
        if letter.is_gone:
            gone += 1
        elif is_past(letter):
            past += 1
        else:
            counts[letter.reason] += 1
    if dry_run or not (counts or past or gone):
        return ReplayResult(counts.total(), dict(sorted(counts.items())), dry_run, past, gone)
    refused = _replay(kafka, _looked_up(kafka, _letters(kafka, places, reason)), is_past)
    counts -= refused
    return ReplayResult(counts.total(), dict(sorted(counts.items())), dry_run, past, gone, refused.total())


def _is_past(letter: DeadLetter, forgotten: ForgottenUsers, events: EventSettings) -> bool:
    """Whether the record is by now an event, of a forgotten user's past. What is none still, the stream refuses."""
    try:
        event = decode_event(letter.value, append_time_ms=time.time_ns() // 1_000_000, settings=events)
    except InfrastructureError:
        raise
    except Exception:  # as in the stream: no bytes, whatever they provoke, may stop the others
        return False
    return event.timestamp <= forgotten.through([event.user_id])[0]


def _replay(kafka: KafkaSettings, letters: Iterator[DeadLetter], is_past: Callable[[DeadLetter], bool]) -> Counter[str]:
    """Returns by reason how many letters the activity topic refused for their size: these stay open."""
    refused: Counter[str] = Counter()
    # Compressed, as what is larger than the topic's limit was when it came.
    with Producer(kafka, max_request_size=MAX_REQUEST_BYTES, compression_type="gzip") as producer:
        for chunk in _chunks(letters):
            produced: list[DeadLetter] = []
            closed: list[DeadLetter] = []
            for letter in chunk:
                if letter.is_gone:
                    log.warning(
                        "dead letter %s is closed and not sent: its record (%s, %d bytes, sha256 %s) is no longer at "
                        "its origin, retention has deleted it",
                        letter.origin, letter.reason, letter.size, letter.sha256,
                    )  # fmt: skip
                    closed.append(letter)
                elif is_past(letter):
                    closed.append(letter)
                else:
                    produced.append(letter)
            taken = producer.offer(_record(kafka, letter) for letter in produced)
            for letter, is_taken in zip(produced, taken, strict=True):
                if is_taken:
                    closed.append(letter)
                else:
                    log.warning("dead letter %s stays open: topic %s refuses its size", letter.origin, kafka.topic)
                    refused[letter.reason] += 1
            producer.deliver(Record(kafka.dead_letter_topic, letter.origin.encode(), None) for letter in closed)
    return refused


def _chunks(letters: Iterator[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """Up to _CHUNK letters and _CHUNK_BYTES each."""
    chunk: list[DeadLetter] = []
    size = 0
    for letter in letters:
        chunk.append(letter)
        size += len(letter.key or b"") + len(letter.value or b"")
        if len(chunk) == _CHUNK or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _record(kafka: KafkaSettings, letter: DeadLetter) -> Record:
    """The original key and value. The client refuses records with neither: those get an empty key."""
    key = b"" if letter.key is None and letter.value is None else letter.key
    return Record(kafka.topic, key, letter.value, [(REPLAY_HEADER, (letter.replay_of or letter.origin).encode())])


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


def _looked_up(kafka: KafkaSettings, letters: Sequence[DeadLetter] | Iterator[DeadLetter]) -> Iterator[DeadLetter]:
    """The letters, references with the key and value that lie at their origins."""
    with ExitStack() as stack:
        origins: TopicReader | None = None
        for letter in letters:
            if letter.is_reference:
                if origins is None:
                    origins = stack.enter_context(TopicReader(kafka))
                letter = _with_origin(origins, letter)
            yield letter


def _with_origin(reader: TopicReader, letter: DeadLetter) -> DeadLetter:
    """The letter as it came where its record is gone, or another record is in its place."""
    low, high = reader.bounds(letter.topic).get(letter.partition, (0, 0))
    if not low <= letter.offset < high:
        return letter
    item = KafkaRange(letter.topic, letter.partition, letter.offset, letter.offset + 1)
    for records in reader.read(item):
        for record in records:
            if digest(record.key, record.value) == letter.sha256:
                return replace(letter, key=record.key, value=record.value)
    return letter


def _records(kafka: KafkaSettings) -> Iterator[Any]:
    """Every record of the dead-letter topic up to its present end, partition by partition in order."""
    with TopicReader(kafka) as reader:
        present = reader.topics()
        if missing := [topic for topic in (kafka.dead_letter_topic, kafka.topic) if topic not in present]:
            raise no_such_topic(kafka, missing, present)
        for partition, (low, high) in reader.bounds(kafka.dead_letter_topic).items():
            for records in reader.read(KafkaRange(kafka.dead_letter_topic, partition, low, high)):
                yield from records
