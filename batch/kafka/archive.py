"""`spoor archive`: lands events from Kafka in the lake before the topic's retention deletes them.

The driver plans bounded offset ranges: all offsets between the partitions' watermarks that are not in the lake's
manifest, gaps first. One DoFn reads, decodes and writes a range as one work item: files, then the manifest entry. A
killed run leaves whole items and files without an entry; the next run removes these files and reads the rest.

A lake is bound to one topic from its first valid event on. A first run without a valid event (an empty topic, a topic
of other records, a mistyped name) leaves the lake unbound.

Events that cannot be decoded are counted by reason in the manifest entry. Their bytes are not kept here: the stream
sends them, with their origin, to the dead-letter topic, and only the stream writes there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
from prometheus_client.metrics_core import Metric

from spoor.activity.events import decode_event, unknown_names
from spoor.activity.lake import LAKE_SCHEMA, Lake, open_lake
from spoor.activity.settings import EventSettings, LakeSettings
from spoor.base.errors import DataError, EventError, InfrastructureError, UsageError
from spoor.base.locks import exclusive
from spoor.batch.job_metrics import JobMetrics, gauge, gauges
from spoor.batch.jobs import LOCAL, Failures, Runner, add_counts, run_items
from spoor.batch.kafka.archive_embeddings import (
    BAD_ROWS,
    COMPACTED,
    EMBEDDING_ROWS,
    check_compaction_lag,
    land_embeddings,
    plan_embeddings,
)
from spoor.batch.kafka.kafka_source import RangeReader, check_same_topic, gaps, plan_ranges
from spoor.batch.progress import progress
from spoor.batch.settings import ArchiveSettings
from spoor.broker.admin import topic_configs, topic_ids
from spoor.broker.reader import KafkaRange, Span
from spoor.broker.settings import KafkaSettings
from spoor.broker.topics import check_activity_topic

NAMESPACE = "spoor.archive"
RECORDS = "records"  # records read
EVENTS = "events"  # of these: valid, now in the lake
MISMATCHED_KEYS = "mismatched_keys"  # valid events whose record key is not the user id
FORGOTTEN = "forgotten"  # valid events up to their user's cut-off: left out
UNKNOWN_NAMES = "unknown_names"  # valid events with an action or surface that the settings do not list
TOPIC = "topic"  # manifest entry that holds the topic's id
UNBOUND = "unbound"  # manifest entry of a first run that has found no valid event yet
BAD = "bad."  # followed by the reason: records that cannot be decoded

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArchiveResult:
    """Result of one run. Counts are of records; `bad` is by reason."""

    topic: str
    items: int  # work items (offset ranges) planned
    planned_records: int  # offsets in them
    dry_run: bool
    watermarks: dict[int, Span]  # per partition: first retained offset, end
    records: int = 0
    events: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    mismatched_keys: int = 0
    unknown_names: int = 0
    forgotten: int = 0  # events up to their user's cut-off, left out
    lost: int = 0  # offsets deleted by retention and skipped with accept_loss
    embedding_rows: int = 0  # published rows landed in the offline log
    bad_embedding_rows: int = 0  # records on the embedding topics that are no row of their user and release
    compacted_embedding_rows: int = 0  # records on the embedding topics compacted before they were archived
    seconds: float = 0.0

    def text(self, lake: Path) -> str:
        """The text output; `lake`: the folder. Unusual counts appear only if they are not 0."""
        if self.dry_run:
            return f"{self.topic}: {self.planned_records:,} records in {self.items:,} work items to read"
        unusual = {
            "events whose key is not their user id": self.mismatched_keys,
            "events with an action or surface that the settings do not list": self.unknown_names,
            "events of deleted users left out": self.forgotten,
            "records lost to retention": self.lost,
            "bad published rows": self.bad_embedding_rows,
            "published rows compacted before they were archived": self.compacted_embedding_rows,
        }
        return (
            f"{self.topic}: {self.events:,} events to {lake} in {self.seconds:.1f} s, {sum(self.bad.values()):,} bad "
            f"records; {self.embedding_rows:,} published rows to the offline log"
            + "".join(f"; {what}: {count:,}" for what, count in unusual.items() if count)
        )


@dataclass(frozen=True)
class ArchivePlan:
    """The ranges to read, and the manifest entries to write first."""

    items: list[KafkaRange]
    begins: dict[int, int]  # partition → first offset for the lake; only partitions that the lake does not hold yet
    lost: list[KafkaRange]  # deleted by retention and skipped
    watermarks: dict[int, Span]
    topic_id: str | None  # None: the broker reports none


def run_archive(
    settings: ArchiveSettings,
    *,
    dry_run: bool = False,
    resume: bool = True,
    accept_loss: bool = False,
    runner: Runner = LOCAL,
) -> ArchiveResult:
    """Archives the activity topic up to its end at the start of the run, and the embedding topics likewise.

    `resume=False` reads archived ranges again if Kafka still holds them, for example after a change of the [events]
    settings. `accept_loss` continues despite records lost to retention. Raises DataError (records lost), UsageError (no
    such topic), InfrastructureError (broker, disk, or another archive running).
    """
    started = time.monotonic()
    metrics = JobMetrics(settings.state_folder, "archive")
    lake = open_lake(settings.lake)
    with exclusive(lake.folder / "_archive.lock", job="spoor archive"):
        with RangeReader(settings.kafka) as reader:
            watermarks = reader.watermarks(settings.kafka.topic)
            published = plan_embeddings(settings, reader)
        _check_topic(settings.kafka)
        check_compaction_lag(settings.kafka)
        if not dry_run:
            _settle_binding(lake)
        plan = plan_archive(
            lake,
            watermarks,
            topic=settings.kafka.topic,
            topic_id=topic_ids(settings.kafka, [settings.kafka.topic]).get(settings.kafka.topic),
            range_records=settings.lake.range_records,
            resume=resume,
            accept_loss=accept_loss,
        )
        planned = sum(item.end - item.start for item in plan.items)
        counts: dict[str, int] = {}
        landed: dict[str, int] = {}
        _LOG.info("archive of `%s`: %d records in %d work items", settings.kafka.topic, planned, len(plan.items))
        if not dry_run:
            if orphans := lake.remove_orphans():
                _LOG.warning("removed %d files that an interrupted archive left unfinished", orphans)
            _note_begins(lake, settings.kafka.topic, plan)
            if plan.items:
                counts = _run(settings, lake, plan.items, metrics, runner=runner)
            if not _settle_binding(lake) and counts.get(RECORDS, 0):
                _LOG.warning(
                    "topic `%s` has %d records and no valid event: the lake `%s` is not bound to it. Is kafka.topic "
                    "the right one, and do the [events] settings fit it?",
                    settings.kafka.topic, counts[RECORDS], lake.folder,
                )  # fmt: skip
            landed = land_embeddings(settings, published, runner=runner)
    result = ArchiveResult(
        topic=settings.kafka.topic,
        items=len(plan.items),
        planned_records=planned,
        dry_run=dry_run,
        watermarks=watermarks,
        records=counts.get(RECORDS, 0),
        events=counts.get(EVENTS, 0),
        bad={name.removeprefix(BAD): count for name, count in counts.items() if name.startswith(BAD)},
        mismatched_keys=counts.get(MISMATCHED_KEYS, 0),
        unknown_names=counts.get(UNKNOWN_NAMES, 0),
        forgotten=counts.get(FORGOTTEN, 0),
        lost=sum(item.end - item.start for item in plan.lost),
        embedding_rows=landed.get(EMBEDDING_ROWS, 0),
        bad_embedding_rows=landed.get(BAD_ROWS, 0),
        compacted_embedding_rows=landed.get(COMPACTED, 0),
        seconds=time.monotonic() - started,
    )
    if result.compacted_embedding_rows:
        _LOG.warning(
            "%d published rows are not in the offline log, unless a backfill has written them: archive more often than "
            "every %d hours, or raise kafka.embedding_compaction_lag_hours and the topics' min.compaction.lag.ms",
            result.compacted_embedding_rows, settings.kafka.embedding_compaction_lag_hours,
        )  # fmt: skip
    if not dry_run:
        metrics.ended(*figures(result))
    return result


def figures(result: ArchiveResult) -> list[Metric]:
    """The result as Prometheus metrics."""
    return [
        gauge("spoor_archive_events", "events that the last archive brought into the lake", result.events),
        gauges("spoor_archive_bad_records", "records of the last archive that are no event", "reason", result.bad),
        gauge(
            "spoor_archive_bad_embedding_records",
            "records of the embedding topics that the last archive could not land",
            result.bad_embedding_rows,
        ),
        gauge("spoor_archive_lost_records", "records that the last archive gave up to retention", result.lost),
        gauge(
            "spoor_archive_compacted_records",
            "records of the embedding topics that compaction removed before the last archive",
            result.compacted_embedding_rows,
        ),
    ]


def plan_archive(
    lake: Lake,
    watermarks: dict[int, Span],
    *,
    topic: str,
    topic_id: str | None,
    range_records: int,
    resume: bool = True,
    accept_loss: bool = False,
) -> ArchivePlan:
    """Plans the ranges still to be read. A lake without entries begins at the low watermarks. In a lake with entries, a
    new partition begins at offset 0, so records that retention has deleted meanwhile are detected."""
    entries = lake.ranges()
    others = {entry["topic"] for entry in entries.values()} - {topic}
    if others:
        raise UsageError(
            f"the lake `{lake.folder}` holds topic `{others.pop()}`, not `{topic}`",
            hint="set kafka.topic back, or archive into another lake.folder",
        )
    again = "archive it into another lake.folder"
    check_same_topic(topic, topic_id, lake.manifest, TOPIC, hint=again)
    if gone := sorted({entry["partition"] for entry in entries.values()} - watermarks.keys()):
        raise DataError(
            f"the lake holds partition {gone[0]} of topic `{topic}`, which has {len(watermarks)} partitions now",
            hint=f"was the topic deleted and made again? then {again}",
        )
    begins: dict[int, int] = {}
    missing: dict[int, list[Span]] = {}
    lost: list[KafkaRange] = []
    for partition, (low, high) in watermarks.items():
        covered = lake.covered(partition)
        if covered and covered[-1][1] > high:
            raise DataError(
                f"the lake holds partition {partition} of topic `{topic}` up to offset {covered[-1][1]}, but the "
                f"partition ends at {high}",
                hint=f"was the topic deleted and made again? then {again}",
            )
        if not covered:
            begins[partition] = 0 if entries else low
        begin = covered[0][0] if covered else begins[partition]
        spans = gaps(covered, begin=begin, high=high)
        if accept_loss:
            eaten = [(start, min(end, low)) for start, end in spans if start < low]
            lost += [KafkaRange(topic, partition, start, end) for start, end in eaten]
            spans = [(max(start, low), end) for start, end in spans if end > low]
        missing[partition] = spans
    items = plan_ranges(topic, watermarks, missing, range_records=range_records)
    if not resume:
        again = [
            KafkaRange(topic, entry["partition"], entry["start"], entry["end"])
            for entry in entries.values()
            if entry["start"] < entry["end"] and entry["start"] >= watermarks[entry["partition"]][0]
        ]
        items = sorted(again + items, key=lambda item: item.key)
    return ArchivePlan(items, begins, lost, watermarks, topic_id)


@dataclass(eq=False)
class LandRange(beam.DoFn):
    """Reads one KafkaRange, decodes it, writes it to the lake; yields the range's key."""

    kafka: KafkaSettings
    events: EventSettings
    lake: LakeSettings
    failures: Failures

    def setup(self) -> None:
        with self.failures.recorded():
            self._reader = RangeReader(self.kafka)

    def teardown(self) -> None:
        if hasattr(self, "_reader"):
            self._reader.close()

    def process(self, element: KafkaRange) -> Iterator[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with self.failures.recorded():
            lake = open_lake(self.lake)
            table, counts = read_events(self._reader, element, self.events)
            kept = lake.forgotten.without_past(table)
            counts[FORGOTTEN] = len(table) - len(kept)
            counts[EVENTS] = len(kept)
            record = {
                "topic": element.topic,
                "partition": element.partition,
                "start": element.start,
                "end": element.end,
                "records": counts[RECORDS],
                "bad": {name.removeprefix(BAD): count for name, count in counts.items() if name.startswith(BAD)},
            }
            lake.write(element.key, kept, record)
        add_counts(NAMESPACE, counts)
        yield element.key


def read_events(reader: RangeReader, item: KafkaRange, settings: EventSettings) -> tuple[pa.Table, Counter[str]]:
    """A range's valid events as LAKE_SCHEMA, and the counts of its records."""
    counts: Counter[str] = Counter({RECORDS: 0, EVENTS: 0})
    rows: list[tuple[str | int, ...]] = []
    for records in reader.read(item):
        counts[RECORDS] += len(records)
        for record in records:
            try:
                event = decode_event(record.value, append_time_ms=record.timestamp, settings=settings)
            except InfrastructureError:
                raise
            except Exception as error:  # as in the stream: no record may stop the partition
                reason = error.reason if isinstance(error, EventError) else "decoder-error"
                counts[BAD + reason] += 1
                continue
            counts[MISMATCHED_KEYS] += record.key != event.user_id.encode()
            counts[UNKNOWN_NAMES] += bool(unknown_names(event, settings))
            rows.append((*event, item.partition, record.offset, record.timestamp))
    counts[EVENTS] = len(rows)
    columns = list(zip(*rows, strict=True)) or [()] * len(LAKE_SCHEMA)
    arrays = [pa.array(column, each.type) for column, each in zip(columns, LAKE_SCHEMA, strict=True)]
    return pa.table(arrays, schema=LAKE_SCHEMA), counts


def _check_topic(kafka: KafkaSettings) -> None:
    """The stream's check of the topic's configuration. Raises UsageError for a topic that loses or misdates events."""
    try:
        config = topic_configs(kafka, lambda topic: topic == kafka.topic).get(kafka.topic, {})
    except InfrastructureError as error:  # for example a Kafka user without permission to read it
        _LOG.warning("the configuration of topic `%s` is not checked: %s", kafka.topic, error.message)
        return
    check_activity_topic(kafka, config)


def _settle_binding(lake: Lake) -> bool:
    """Ends a first run, including one that was killed: with a valid event the lake is bound to its topic, else the
    run's entries are removed. Returns whether the lake is bound to a topic."""
    entries = lake.ranges()
    if lake.has(UNBOUND):
        if not any(entry.get("records", 0) > sum(entry.get("bad", {}).values()) for entry in entries.values()):
            for item in (*entries, TOPIC):
                lake.manifest.remove(item)
            entries = {}
        lake.manifest.remove(UNBOUND)
    return bool(entries)


def _note_begins(lake: Lake, topic: str, plan: ArchivePlan) -> None:
    """Writes manifest entries without rows: the topic, the first offset of new partitions, and the lost ranges."""
    empty = LAKE_SCHEMA.empty_table()
    if not lake.ranges():
        lake.write(UNBOUND, empty, {})
    if plan.topic_id is not None and not lake.has(TOPIC):
        lake.write(TOPIC, empty, {"topic_id": plan.topic_id})
    for partition, begin in plan.begins.items():
        record = {"topic": topic, "partition": partition, "start": begin, "end": begin}
        lake.write(f"p{partition:05d}-begin", empty, record)
    for item in plan.lost:
        record = {"topic": item.topic, "partition": item.partition, "start": item.start, "end": item.end}
        lake.write(f"{item.key}-lost", empty, record | {"lost": True})


def _run(
    settings: ArchiveSettings, lake: Lake, items: list[KafkaRange], metrics: JobMetrics, *, runner: Runner
) -> dict[str, int]:
    failures = Failures(settings.state_folder / "jobs" / "archive")
    landing = LandRange(settings.kafka, settings.events, settings.lake, failures)
    keys = {item.key for item in items}
    with progress("archive", total=len(items), finished=lambda: lake.manifest.keys() & keys, metrics=metrics):
        return run_items(
            items,
            landing,
            of="offset ranges",
            doing="Land range in the lake",
            runner=runner,
            failures=failures,
            namespace=NAMESPACE,
        )
