"""Consumers: bounded ranges of a topic, and the committed offsets of a group.

A range (topic, partition, [start, end)) is read when the consumer's *position* reaches `end`. Counting records would
wait forever: transaction markers, aborted transactions and compaction leave offsets without a record. With
kafka.isolation_level `read_committed`, a partition ends at its first open transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from spoor.base.errors import InfrastructureError
from spoor.broker.clients import kafka_errors, timeouts
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


class TopicReader:
    """A consumer that joins no group. It reads ranges one after the other and skips records that retention has deleted.
    Every method raises InfrastructureError (`kafka_errors`)."""

    def __init__(self, kafka: KafkaSettings, *, group: str | None = None) -> None:
        from kafka import KafkaConsumer

        self._kafka = kafka
        limits = timeouts(kafka)
        timeout_ms = limits["request_timeout_ms"]
        options: dict[str, Any] = (
            kafka.consumer_options()
            | limits
            | {
                "group_id": group,
                "auto_offset_reset": "none",  # a deleted offset is an error, never a silent jump
                "max_poll_records": POLL_RECORDS,
                "max_partition_fetch_bytes": 8 << 20,
                "fetch_max_wait_ms": min(500, timeout_ms // 2),  # must be below the request's timeout
                "connections_max_idle_ms": max(540_000, 2 * timeout_ms),  # must be above it
            }
        )
        with kafka_errors(kafka):
            self._consumer: Any = KafkaConsumer(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._consumer.close(autocommit=False)

    def topics(self) -> set[str]:
        with kafka_errors(self._kafka):
            return self._consumer.topics()

    def bounds(self, topic: str) -> dict[int, Span]:
        """By partition: (low, high), the first retained offset and the end of the readable records; empty if the topic
        does not exist."""
        with kafka_errors(self._kafka):
            if not (partitions := self._partitions(topic)):
                return {}
            low, high = self._consumer.beginning_offsets(partitions), self._consumer.end_offsets(partitions)
        return {tp.partition: (low[tp], high[tp]) for tp in partitions}

    def watermarks(self, topic: str) -> dict[int, Span]:
        """As `bounds`. Raises UsageError if the topic does not exist."""
        found = self.bounds(topic)
        if not found:
            raise no_such_topic(self._kafka, [topic], self.topics())
        return found

    def oldest_times(self, topic: str) -> dict[int, int]:
        """By non-empty partition: the time of the oldest record, ms since 1970; 0 if it has no time. Raises as
        `watermarks`."""
        filled = [partition for partition, (low, high) in self.watermarks(topic).items() if low < high]
        found = self._since(topic, 0)
        return {partition: found[partition].timestamp if partition in found else 0 for partition in filled}

    def first_offsets(self, topic: str, since_ms: int) -> dict[int, int]:
        """By partition: the offset of the first record appended at or after that time, if there is one."""
        return {partition: found.offset for partition, found in self._since(topic, since_ms).items()}

    def read(self, item: KafkaRange) -> Iterator[list[Any]]:
        """The range's records (kafka-python ConsumerRecords) in offset order, in lists of at most POLL_RECORDS.

        Raises as `check`, and InfrastructureError if the position does not advance for `request_timeout_seconds`.
        """
        from kafka.errors import OffsetOutOfRangeError
        from kafka.structs import TopicPartition

        tp = TopicPartition(item.topic, item.partition)
        patience = self._kafka.request_timeout_seconds
        with kafka_errors(self._kafka):
            low, high = self._consumer.beginning_offsets([tp])[tp], self._consumer.end_offsets([tp])[tp]
            self.check(item, low=low, high=high)
            self._consumer.assign([tp])
            at, deadline = max(item.start, low), time.monotonic() + patience
            self._consumer.seek(tp, at)
            while at < item.end:
                try:
                    polled = self._consumer.poll(timeout_ms=int(POLL_SECONDS * 1000))
                except OffsetOutOfRangeError:
                    low = self._consumer.beginning_offsets([tp])[tp]
                    if low <= at:
                        raise
                    self.check(replace(item, start=at), low=low, high=high)
                    self._consumer.seek(tp, low)
                    polled = {}
                records = [record for record in polled.get(tp, []) if record.offset < item.end]
                if records:
                    yield records
                before, at = at, self._consumer.position(tp) or at
                if at > before:
                    deadline = time.monotonic() + patience
                elif time.monotonic() > deadline:
                    raise InfrastructureError(
                        f"partition {item.partition} of topic `{item.topic}`: no progress for {patience:.0f} s at "
                        f"offset {at}, {item.end} expected",
                        hint="check the broker, then run the command again: it goes on where it stopped",
                    )

    def check(self, item: KafkaRange, *, low: int, high: int) -> None:
        """A hook that subclasses override to raise: called with the partition's bounds before a range is read, and when
        retention has passed the position."""

    def _partitions(self, topic: str) -> list[Any]:
        from kafka.structs import TopicPartition

        return [TopicPartition(topic, number) for number in sorted(self._consumer.partitions_for_topic(topic) or ())]

    def _since(self, topic: str, since_ms: int) -> dict[int, Any]:
        with kafka_errors(self._kafka):
            partitions = self._partitions(topic)
            found = self._consumer.offsets_for_times(dict.fromkeys(partitions, since_ms)) if partitions else {}
        return {tp.partition: first for tp, first in found.items() if first is not None}


class GroupReader(TopicReader):
    """Reads and commits the offsets of a consumer group without joining it."""

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        super().__init__(kafka, group=group)

    def committed(self, topic: str) -> dict[int, int]:
        """By partition: the committed offset, if there is one."""
        with kafka_errors(self._kafka):
            found = {tp.partition: self._consumer.committed(tp) for tp in self._partitions(topic)}
        return {partition: offset for partition, offset in found.items() if offset is not None}

    def commit(self, topic: str, offsets: Mapping[int, int], *, note: str) -> bool:
        """Commits the offsets with `note` as their metadata. Returns False while the group has members: the broker then
        accepts offsets from members only."""
        from kafka.errors import CommitFailedError
        from kafka.structs import OffsetAndMetadata, TopicPartition

        marked = {TopicPartition(topic, number): OffsetAndMetadata(at, note, -1) for number, at in offsets.items()}
        with kafka_errors(self._kafka):
            try:
                self._consumer.assign(list(marked))
                self._consumer.commit(marked)
            except CommitFailedError:
                return False
        return True


def group_lag(kafka: KafkaSettings, group: str) -> dict[int, int]:
    """The group's lag per partition of the activity topic: retained records not yet committed. Raises
    InfrastructureError."""
    with GroupReader(kafka, group) as reader:
        committed = reader.committed(kafka.topic)
        bounds = reader.bounds(kafka.topic)
    return {number: high - max(committed.get(number, 0), low) for number, (low, high) in bounds.items()}
