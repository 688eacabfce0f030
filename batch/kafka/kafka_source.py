"""Bounded Kafka ranges: plans the ranges still to be read; RangeReader reads exactly one (spoor/broker/reader.py).

With kafka.isolation_level `read_committed`, `high` is the last stable offset: an open transaction and all later records
are left to the next run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spoor.base.errors import DataError
from spoor.base.files import Manifest
from spoor.broker.reader import KafkaRange, Span, TopicReader


def gaps(covered: Sequence[Span], *, begin: int, high: int) -> list[Span]:
    """The parts of [begin, high) outside the ascending, disjoint spans `covered`."""
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

    Raises DataError if a missing offset is below the partition's low watermark: retention has deleted it.
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
    """Raises DataError unless the broker holds the whole range."""
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


def check_same_topic(topic: str, topic_id: str | None, noted: Manifest, key: str, *, hint: str) -> None:
    """Raises DataError if the manifest's entry `key` (`{"topic_id": …}`) has another id: the topic was recreated, its
    offsets start at 0 again, and the manifest's offsets refer to other records."""
    entry = noted.get(key)
    if entry is not None and topic_id is not None and entry["topic_id"] != topic_id:
        raise DataError(
            f"topic `{topic}` was deleted and made again since its records were landed: its id is {topic_id}, was "
            f"{entry['topic_id']}",
            hint=f"{hint}. If it has the same records at the same offsets, as a copy of a cluster may, remove "
            f"{noted.folder / key}.json",
        )


class RangeReader(TopicReader):
    """A TopicReader whose `read` raises DataError, as `check_retained`, unless the broker holds the whole range."""

    def check(self, item: KafkaRange, *, low: int, high: int) -> None:
        check_retained(item, low=low, high=high)
