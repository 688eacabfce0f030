"""Bounded Kafka ranges: what is still to be read, and reading exactly that.

A work item is (topic, partition, [start, end)). It ends when the consumer's *position* reaches `end`: transaction
markers, aborted transactions and compaction leave offsets without a record, so counting records would wait for ever.
With kafka.isolation_level `read_committed`, `high` is the last stable offset: an open transaction, and what follows it,
is left for the next run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from spoor.base.errors import DataError, InfrastructureError
from spoor.broker.compression import missing_codec
from spoor.broker.settings import KafkaSettings
from spoor.broker.topics import no_such_topic

POLL_SECONDS = 0.5
POLL_RECORDS = 5_000
Span = tuple[int, int]  # offsets [start, end)


@dataclass(frozen=True)
class KafkaRange:
    """Offsets [start, end) of one partition."""

    topic: str
    partition: int
    start: int
    end: int

    @property
    def key(self) -> str:
        return f"p{self.partition:05d}-{self.start:015d}-{self.end:015d}"


def gaps(covered: Sequence[Span], *, begin: int, high: int) -> list[Span]:
    """The parts of [begin, high) that the ascending, disjoint `covered` leaves out."""
    found: list[Span] = []
    at = begin
    for start, end in covered:
        if start > at:
            found.append((at, min(start, high)))
        at = max(at, end)
    if at < high:
        found.append((at, high))
    return [(start, end) for start, end in found if start < end]


def plan_ranges(
    topic: str,
    watermarks: Mapping[int, Span],
    missing: Mapping[int, Sequence[Span]],
    *,
    range_records: int,
) -> list[KafkaRange]:
    """Cuts the `missing` spans of each partition into work items of at most `range_records` offsets, oldest first.

    Raises DataError where the partition's low watermark lies above a missing offset: retention has eaten it.
    """
    items: list[KafkaRange] = []
    for partition, spans in sorted(missing.items()):
        low, high = watermarks[partition]
        for start, end in spans:
            check_retained(KafkaRange(topic, partition, start, end), low=low, high=high)
            cuts = range(start, end, range_records)
            items += [KafkaRange(topic, partition, at, min(at + range_records, end)) for at in cuts]
    return items


def check_retained(item: KafkaRange, *, low: int, high: int) -> None:
    """Raises DataError if the broker no longer holds, or never held, all of the range."""
    where = f"partition {item.partition} of topic `{item.topic}`"
    if item.start < low:
        raise DataError(
            f"{where}: offset {item.start} is needed next, but retention has deleted everything below {low} "
            f"({min(low, item.end) - item.start} records are lost)",
            hint="archive more often than the topic's retention; to go on without them: spoor archive --accept-loss",
        )
    if item.end > high:
        raise DataError(
            f"{where}: offsets up to {item.end} are expected, but the partition ends at {high}",
            hint="was the topic deleted and made again? then archive it into another lake.folder",
        )


class RangeReader:
    """A consumer outside any group that reads ranges one after the other. Raises InfrastructureError if the broker
    does not answer."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        timeout_ms = int(kafka.request_timeout_seconds * 1000)
        options: dict[str, Any] = kafka.consumer_options() | {
            "group_id": None,
            "auto_offset_reset": "none",  # a deleted range is an error, never a silent jump
            "max_poll_records": POLL_RECORDS,
            "max_partition_fetch_bytes": 8 << 20,
            "bootstrap_timeout_ms": timeout_ms,
            "request_timeout_ms": timeout_ms,
        }
        with _translated(kafka):
            self._consumer = KafkaConsumer(**options)

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._consumer.close(autocommit=False)

    def watermarks(self, topic: str) -> dict[int, Span]:
        """(low, high) of every partition: the first offset that is retained, and the end of what may be read.

        Raises UsageError if there is no such topic.
        """
        with _translated(self._kafka):
            partitions = self._consumer.partitions_for_topic(topic)
            if not partitions:
                raise no_such_topic(self._kafka, [topic], self._consumer.topics())
            all_of_them = [TopicPartition(topic, partition) for partition in sorted(partitions)]
            low = self._consumer.beginning_offsets(all_of_them)
            high = self._consumer.end_offsets(all_of_them)
        return {tp.partition: (low[tp], high[tp]) for tp in all_of_them}

    def oldest_times(self, topic: str) -> dict[int, int]:
        """By partition, without empty ones: the time of the oldest record, ms since 1970; 0 where it has none.

        Raises as `watermarks`."""
        partitions = [
            TopicPartition(topic, partition) for partition, (low, high) in self.watermarks(topic).items() if low < high
        ]
        with _translated(self._kafka):
            found = self._consumer.offsets_for_times(dict.fromkeys(partitions, 0)) if partitions else {}
        return {tp.partition: 0 if (first := found[tp]) is None else first.timestamp for tp in partitions}

    def read(self, item: KafkaRange) -> Iterator[list[Any]]:
        """The range's records (kafka-python ConsumerRecords) in offset order, in lists of at most POLL_RECORDS.

        Raises DataError if retention has eaten part of it, InfrastructureError when the position does not move for
        `request_timeout_seconds`.
        """
        partition = TopicPartition(item.topic, item.partition)
        patience = self._kafka.request_timeout_seconds
        with _translated(self._kafka):
            low = self._consumer.beginning_offsets([partition])[partition]
            high = self._consumer.end_offsets([partition])[partition]
            check_retained(item, low=low, high=high)
            self._consumer.assign([partition])
            self._consumer.seek(partition, item.start)
            at, deadline = item.start, time.monotonic() + patience
            while at < item.end:
                try:
                    polled = self._consumer.poll(timeout_ms=int(POLL_SECONDS * 1000))
                except OffsetOutOfRangeError:
                    low = self._consumer.beginning_offsets([partition])[partition]
                    check_retained(KafkaRange(item.topic, item.partition, at, item.end), low=low, high=high)
                    raise
                records = [record for record in polled.get(partition, []) if record.offset < item.end]
                if records:
                    yield records
                before, at = at, self._consumer.position(partition) or at
                if at > before:
                    deadline = time.monotonic() + patience
                elif time.monotonic() > deadline:
                    raise InfrastructureError(
                        f"partition {item.partition} of topic `{item.topic}`: no progress for {patience:.0f} s at "
                        f"offset {at}, {item.end} expected",
                        hint="check the broker, then run the command again: it goes on where it stopped",
                    )


@contextmanager
def _translated(kafka: KafkaSettings) -> Iterator[None]:
    """kafka-python's errors as InfrastructureError."""
    try:
        yield
    except (KafkaError, OSError) as error:
        raise missing_codec(error) or InfrastructureError(
            f"Kafka at {kafka.address} does not answer: {type(error).__name__} {error}".rstrip(),
            hint=kafka.way_to_a_broker,
        ) from error
