"""Where a group begins that takes over from a backfill, and one that goes back, on the genuine broker."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from spoor.activity.lake import LAKE_SCHEMA, Lake
from spoor.base.errors import InfrastructureError, UsageError
from spoor.broker.create_topics import ensure_topics
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.streaming.orders.handover import rewind, start_after_backfill
from tests.conftest import free_port, wait_until

GROUP = "taking-over"


@pytest.fixture
def settings(kafka_settings: Settings) -> Settings:
    """A topic of its own; the group's name is its own too, because the broker is shared."""
    ensure_topics(kafka_settings.kafka, releases=[])
    group = f"{GROUP}-{kafka_settings.kafka.topic}"
    return dataclasses.replace(kafka_settings, stream=dataclasses.replace(kafka_settings.stream, group=group))


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings.lake.folder, buckets=settings.lake.buckets)


def land(lake: Lake, settings: Settings, partition: int, start: int, end: int, *, bad: int = 0) -> None:
    """What `spoor archive` notes of a range; its rows are of no interest here."""
    record = {"topic": settings.kafka.topic, "partition": partition, "start": start, "end": end}
    record["bad"] = {"not-json": bad} if bad else {}
    lake.write(f"p{partition}-{start}", pa.table([[]] * len(LAKE_SCHEMA), schema=LAKE_SCHEMA), record)
    lake.note_backfilled(lake.ends())


def committed(settings: Settings) -> dict[int, int]:
    group = settings.stream.group
    with closing(KafkaAdminClient(**settings.kafka.client_options())) as admin:
        return {tp.partition: meta.offset for tp, meta in admin.list_group_offsets(group)[group].items()}


@pytest.fixture
def member(settings: Settings) -> Iterator[KafkaConsumer]:
    """A worker of the group that has committed nothing."""
    options = settings.kafka.client_options() | {"enable_auto_commit": False, "metadata_max_age_ms": 1000}
    with closing(KafkaConsumer(group_id=settings.stream.group, **options)) as consumer:
        # kafka-python 3.0 joins again when it hears of the topic late, and loses that join if a poll ends meanwhile.
        wait_until(lambda: bool(consumer.partitions_for_topic(settings.kafka.topic)), "the topic is known")
        consumer.subscribe([settings.kafka.topic])
        wait_until(lambda: consumer.poll(timeout_ms=200) == {} and len(consumer.assignment()) > 0, "it has joined")
        yield consumer


def test_a_new_group_begins_where_the_backfilled_range_ends(settings: Settings, lake: Lake):
    land(lake, settings, 0, 0, 40)
    land(lake, settings, 0, 40, 70)
    land(lake, settings, 0, 90, 100)  # 70 to 90 were not archived yet
    land(lake, settings, 2, 5, 5)
    assert start_after_backfill(settings, lake) == {0: 70, 2: 5}
    assert committed(settings) == {0: 70, 2: 5}


def test_what_was_archived_after_the_backfill_is_read_by_the_stream(settings: Settings, lake: Lake):
    land(lake, settings, 0, 0, 40)
    backfilled = lake.backfilled()
    land(lake, settings, 0, 40, 70)
    land(lake, settings, 1, 0, 7)
    lake.note_backfilled(backfilled)
    assert start_after_backfill(settings, lake) == {0: 40}


def test_a_group_that_has_committed_is_left_alone(settings: Settings, lake: Lake):
    land(lake, settings, 0, 0, 40)
    start_after_backfill(settings, lake)
    land(lake, settings, 0, 40, 80)
    land(lake, settings, 1, 0, 7)
    assert start_after_backfill(settings, lake) == {1: 7}
    assert committed(settings) == {0: 40, 1: 7}


def test_bad_records_in_the_lake_s_ranges_are_read_again_so_that_they_become_dead_letters(settings, lake):
    land(lake, settings, 0, 0, 40)
    land(lake, settings, 0, 40, 70, bad=2)
    land(lake, settings, 0, 70, 90)
    land(lake, settings, 0, 90, 95, bad=1)
    land(lake, settings, 1, 0, 7)
    assert start_after_backfill(settings, lake) == {0: 40, 1: 7}


def test_without_a_backfill_there_is_nothing_to_begin_after(settings: Settings, lake: Lake):
    with pytest.raises(UsageError, match="no backfill has read") as raised:
        start_after_backfill(settings, lake)
    assert "spoor archive" in raised.value.hint
    assert committed(settings) == {}


def test_the_lake_of_another_topic_says_nothing_about_this_one(settings: Settings, lake: Lake):
    other = dataclasses.replace(settings, kafka=dataclasses.replace(settings.kafka, topic="yesterday"))
    land(lake, other, 0, 0, 40)
    with pytest.raises(UsageError, match="holds topic `yesterday`"):
        start_after_backfill(settings, lake)
    assert committed(settings) == {}


def test_a_group_at_work_is_not_moved_under_its_workers(settings: Settings, lake: Lake, member: KafkaConsumer):
    land(lake, settings, 0, 0, 40)
    with pytest.raises(UsageError, match="has workers: its offsets are theirs") as raised:
        start_after_backfill(settings, lake)
    assert "--from-lake" in raised.value.hint
    assert committed(settings) == {}


def test_a_broker_that_is_down_is_one_clear_error(settings: Settings, lake: Lake):
    land(lake, settings, 0, 0, 40)
    kafka = KafkaSettings(port=free_port(), topic=settings.kafka.topic, request_timeout_seconds=1.0)
    with pytest.raises(InfrastructureError, match="no Kafka broker answers") as raised:
        start_after_backfill(dataclasses.replace(settings, kafka=kafka), lake)
    assert "spoor services up" in raised.value.hint


@pytest.fixture
def appended(settings: Settings) -> int:
    """Three records in partition 0, and two more that were appended at the returned time or later. All are committed,
    and so is partition 1, which is empty."""
    topic, group = settings.kafka.topic, settings.stream.group
    with KafkaProducer(**settings.kafka.client_options()) as producer:
        early = [producer.send(topic, partition=0, value=b"x").get(timeout=30).timestamp for _ in range(3)]
        after = max(early) + 1
        wait_until(lambda: time.time_ns() // 1_000_000 >= after, "the next millisecond")
        for _ in range(2):
            producer.send(topic, partition=0, value=b"x").get(timeout=30)
    options = settings.kafka.client_options() | {"enable_auto_commit": False}
    with closing(KafkaConsumer(group_id=group, **options)) as consumer:
        partitions = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
        consumer.assign(partitions)
        consumer.commit({tp: OffsetAndMetadata(5 if tp.partition == 0 else 0, "", -1) for tp in partitions})
    return after


def test_a_rewound_group_reads_again_what_was_appended_since(settings: Settings, appended: int):
    assert rewind(settings, to_ms=appended, dry_run=True) == {0: (5, 3)}
    assert committed(settings) == {0: 5, 1: 0}
    assert rewind(settings, to_ms=appended) == {0: (5, 3)}
    assert committed(settings) == {0: 3, 1: 0}
    assert rewind(settings, to_ms=0) == {0: (3, 0)}


def test_a_group_is_never_moved_forward(settings: Settings, appended: int):
    rewind(settings, to_ms=0)
    for to_ms in (appended, appended + 3_600_000):
        assert rewind(settings, to_ms=to_ms) == {}
    assert committed(settings) == {0: 0, 1: 0}


def test_a_group_at_work_is_not_rewound(settings: Settings, appended: int, member: KafkaConsumer):
    with pytest.raises(UsageError, match="has workers: its offsets are theirs") as raised:
        rewind(settings, to_ms=0)
    assert "--rewind" in raised.value.hint
    assert committed(settings) == {0: 5, 1: 0}
