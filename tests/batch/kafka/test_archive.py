from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from spoor.activity.events import Event, encode_event
from spoor.activity.lake import LAKE_SCHEMA
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.base.locks import exclusive
from spoor.batch.kafka.archive import open_lake, run_archive
from spoor.broker.create_topics import ensure_topics
from spoor.config import Settings
from tests.conftest import wait_until

ROOT = Path(__file__).parents[3]


def _events(count: int, *, first: int = 0) -> list[Event]:
    return [
        Event(f"user-{n % 7}", f"item-{n}", "view", "web", 900_000_000_000 + n) for n in range(first, first + count)
    ]


def _small_ranges(settings: Settings, range_records: int = 10) -> Settings:
    return dataclasses.replace(settings, lake=dataclasses.replace(settings.lake, range_records=range_records))


def _rows(settings: Settings) -> list[tuple[object, ...]]:
    table = open_lake(settings.lake).read().sort_by([("partition", "ascending"), ("offset", "ascending")])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _contents(settings: Settings) -> dict[str, bytes]:
    """Every file that the lake's readers see, and the manifest."""
    lake = open_lake(settings.lake)
    paths = [*lake.files(), *lake.manifest.folder.glob("*.json")]
    return {str(path.relative_to(lake.folder)): path.read_bytes() for path in paths}


def test_every_valid_event_lands_with_its_origin(kafka_settings: Settings, produce: Callable[..., None]) -> None:
    events = _events(25)
    produce(events, 0)
    produce(_events(5, first=100), 1)
    settings = _small_ranges(kafka_settings)
    result = run_archive(settings)
    assert (result.items, result.records, result.events, result.bad) == (4, 30, 30, {})
    rows = _rows(settings)
    assert [Event(*row[:5]) for row in rows if row[5] == 0] == events  # type: ignore[arg-type]
    assert [row[6] for row in rows if row[5] == 0] == list(range(25))
    assert all(row[7] > 1_700_000_000_000 for row in rows)  # the broker's clock, not the events'


def test_a_second_run_finds_nothing_new(kafka_settings: Settings, produce: Callable[..., None]) -> None:
    produce(_events(12), 0)
    run_archive(kafka_settings)
    before = _contents(kafka_settings)
    again = run_archive(kafka_settings)
    assert (again.items, again.records) == (0, 0)
    assert _contents(kafka_settings) == before


def test_later_records_are_added(kafka_settings: Settings, produce: Callable[..., None]) -> None:
    produce(_events(3), 0)
    run_archive(kafka_settings)
    produce(_events(4, first=3), 0)
    assert run_archive(kafka_settings).events == 4
    assert [row[6] for row in _rows(kafka_settings)] == list(range(7))


def test_bad_records_are_counted_by_reason_and_mismatched_keys_handled(
    kafka_settings: Settings, produce: Callable[..., None]
) -> None:
    good = json.dumps(Event("u", "i", "view", "web", 900_000_000_000)._asdict()).encode()  # keyed `somebody`
    produce([b"{", None, b"[]", good, *_events(2)], 1)
    result = run_archive(kafka_settings)
    assert result.bad == {"not-json": 2, "no-value": 1}
    assert (result.records, result.events, result.mismatched_keys) == (6, 3, 1)
    told = result.text(kafka_settings.lake.folder)
    assert "3 events to" in told and "3 bad records" in told and "lost to retention" not in told
    assert told.endswith("; events whose key is not their user id: 1")
    entries = [entry for entry in open_lake(kafka_settings.lake).manifest.records().values() if entry["rows"]]
    assert [(entry["bad"], entry["records"], entry["rows"]) for entry in entries] == [(result.bad, 6, 3)]


def test_a_dry_run_plans_and_writes_nothing(kafka_settings: Settings, produce: Callable[..., None]) -> None:
    produce(_events(25), 0)
    settings = _small_ranges(kafka_settings)
    result = run_archive(settings, dry_run=True)
    assert (result.dry_run, result.items, result.planned_records, result.records) == (True, 3, 25, 0)
    assert _contents(settings) == {}


CRASH = """
import os, pickle, signal, sys
from spoor.base import files
from spoor.batch.kafka.archive import run_archive

settings, count = pickle.load(open(sys.argv[1], "rb")), int(sys.argv[2])
original = files.os.replace
def replace(source, target):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)
files.os.replace = replace
run_archive(settings)
"""


@pytest.mark.parametrize("writes", [1, 5, 9])
def test_a_run_killed_between_two_writes_is_finished_by_the_next(
    kafka_settings: Settings, produce: Callable[..., None], tmp_path: Path, writes: int
) -> None:
    produce(_events(30), 0)
    settings = _small_ranges(kafka_settings)
    undisturbed = dataclasses.replace(
        settings, lake=dataclasses.replace(settings.lake, folder=tmp_path / "undisturbed")
    )
    run_archive(undisturbed)

    (tmp_path / "settings").write_bytes(pickle.dumps(settings))
    command = [sys.executable, "-c", CRASH, str(tmp_path / "settings"), str(writes)]
    killed = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert _contents(settings) != _contents(undisturbed)

    run_archive(settings)
    assert _contents(settings) == _contents(undisturbed)
    named = set(open_lake(settings.lake).files())
    assert set(settings.lake.folder.glob("day=*/bucket=*/*")) == named


def test_records_that_retention_has_eaten_are_an_error_until_accepted(
    kafka_settings: Settings, produce: Callable[..., None], admin: KafkaAdminClient
) -> None:
    produce(_events(5), 0)
    run_archive(kafka_settings)
    produce(_events(10, first=5), 0)
    admin.delete_records({TopicPartition(kafka_settings.kafka.topic, 0): 9})
    before = _contents(kafka_settings)
    with pytest.raises(DataError, match=r"offset 5 is needed next, .* below 9 \(4 records are lost\)"):
        run_archive(kafka_settings)
    assert _contents(kafka_settings) == before

    result = run_archive(kafka_settings, accept_loss=True)
    assert (result.lost, result.events) == (4, 6)
    assert "; records lost to retention: 4" in result.text(kafka_settings.lake.folder)
    assert run_archive(kafka_settings).items == 0


def test_the_first_archive_begins_where_the_topic_begins(
    kafka_settings: Settings, produce: Callable[..., None], admin: KafkaAdminClient
) -> None:
    produce(_events(10), 0)
    admin.delete_records({TopicPartition(kafka_settings.kafka.topic, 0): 4})
    result = run_archive(kafka_settings)
    assert (result.events, result.watermarks[0]) == (6, (4, 10))


def test_loss_in_a_partition_that_was_empty_at_first_is_noticed(
    kafka_settings: Settings, produce: Callable[..., None], admin: KafkaAdminClient
) -> None:
    produce(_events(3), 0)
    run_archive(kafka_settings)
    produce(_events(3, first=3), 1)
    admin.delete_records({TopicPartition(kafka_settings.kafka.topic, 1): 2})
    with pytest.raises(DataError, match=r"partition 1 .* offset 0 is needed next, .* below 2"):
        run_archive(kafka_settings)


def test_without_resume_what_kafka_still_holds_is_read_again(
    kafka_settings: Settings, produce: Callable[..., None]
) -> None:
    produce(_events(4), 0)
    strict = dataclasses.replace(kafka_settings.events, actions=("buy",), unknown_names="dead-letter")
    assert run_archive(dataclasses.replace(kafka_settings, events=strict)).bad == {"unknown-action": 4}
    assert _rows(kafka_settings) == []
    assert run_archive(kafka_settings, resume=False).events == 4
    assert len(_rows(kafka_settings)) == 4


def test_one_archive_at_a_time(kafka_settings: Settings, activity_topic: str) -> None:
    with (
        exclusive(kafka_settings.lake.folder / "_archive.lock", job="spoor archive"),
        pytest.raises(InfrastructureError, match=f"already runs: process {os.getpid()}"),
    ):
        run_archive(kafka_settings)
    run_archive(kafka_settings)  # the file is still there; who held the lock is not


def test_another_topic_is_not_mixed_into_a_lake(kafka_settings: Settings, produce: Callable[..., None]) -> None:
    produce(_events(2), 0)
    lake = open_lake(kafka_settings.lake)
    lake.write("p00000-begin", LAKE_SCHEMA.empty_table(), {"topic": "other", "partition": 0, "start": 0, "end": 0})
    with pytest.raises(UsageError, match="holds topic `other`"):
        run_archive(kafka_settings)


def test_a_topic_that_was_made_again_with_as_many_records_is_not_taken_for_landed(
    kafka_settings: Settings, produce: Callable[..., None], admin: KafkaAdminClient, tmp_path: Path
) -> None:
    topic = kafka_settings.kafka.topic
    produce(_events(3), 0)
    run_archive(kafka_settings)
    before = _contents(kafka_settings)
    admin.delete_topics([topic], timeout_ms=30_000)
    wait_until(lambda: topic not in admin.list_topics(), "the topic is gone")
    configs = {"message.timestamp.type": "LogAppendTime"}
    admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1, topic_configs=configs)])
    with KafkaProducer(**kafka_settings.kafka.client_options()) as producer:
        for event in _events(4, first=50):
            producer.send(topic, key=event.user_id.encode(), value=encode_event(event), partition=0)
    for options in ({}, {"dry_run": True}, {"resume": False}):
        with pytest.raises(DataError, match=f"topic `{topic}` was deleted and made again") as raised:
            run_archive(kafka_settings, **options)
    assert "another lake.folder" in raised.value.hint and _contents(kafka_settings) == before
    other = dataclasses.replace(kafka_settings.lake, folder=tmp_path / "other")
    assert run_archive(dataclasses.replace(kafka_settings, lake=other)).events == 4
    open_lake(kafka_settings.lake).manifest.remove("topic")  # a copy of the cluster, or a lake of an earlier version
    assert run_archive(kafka_settings).events == 1
    assert open_lake(kafka_settings.lake).has("topic")


@pytest.mark.parametrize("resume", [True, False])
def test_a_topic_with_fewer_partitions_than_the_lake_is_told(
    kafka_settings: Settings, produce: Callable[..., None], resume: bool
) -> None:
    produce(_events(2), 0)
    lake = open_lake(kafka_settings.lake)
    record = {"topic": kafka_settings.kafka.topic, "partition": 5, "start": 0, "end": 3}
    lake.write("p00005-begin", LAKE_SCHEMA.empty_table(), record)
    with pytest.raises(DataError, match=r"holds partition 5 of topic .*, which has 2 partitions now"):
        run_archive(kafka_settings, resume=resume)


def test_a_state_folder_that_cannot_be_written_is_an_infrastructure_error(
    kafka_settings: Settings, produce: Callable[..., None], tmp_path: Path
) -> None:
    produce(_events(2), 0)
    (tmp_path / "file").write_text("in the way")
    lake = dataclasses.replace(kafka_settings.lake, folder=tmp_path / "file" / "lake")
    with pytest.raises(InfrastructureError, match="cannot"):
        run_archive(dataclasses.replace(kafka_settings, lake=lake))


def test_a_dofns_error_arrives_as_it_was_raised(kafka_settings: Settings, produce: Callable[..., None]) -> None:
    """Beam turns exceptions into text; the job's caller still gets the error with its hint and exit code."""
    produce(_events(2), 0)
    today = datetime.now(UTC).date()
    kafka_settings.lake.folder.mkdir(parents=True)
    for day in (today, today + timedelta(days=1)):  # files where the days' folders should be
        (kafka_settings.lake.folder / f"day={day.isoformat()}").write_text("")
    with pytest.raises(InfrastructureError, match="cannot write") as caught:
        run_archive(kafka_settings)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("values", [[], [b"not ours", b"{}", None]], ids=["empty", "foreign"])
def test_a_topic_without_a_valid_event_does_not_bind_the_lake(
    kafka_settings: Settings, produce: Callable[..., None], admin: KafkaAdminClient, values: list[bytes | None]
) -> None:
    foreign = f"{kafka_settings.kafka.topic}-foreign"
    configs = {"message.timestamp.type": "LogAppendTime"}
    admin.create_topics([NewTopic(foreign, num_partitions=2, replication_factor=1, topic_configs=configs)])
    with KafkaProducer(**kafka_settings.kafka.client_options()) as producer:
        for value in values:
            producer.send(foreign, key=b"k", value=value, partition=0).get(timeout=30)
    wrong = dataclasses.replace(kafka_settings, kafka=dataclasses.replace(kafka_settings.kafka, topic=foreign))
    for _ in range(2):
        result = run_archive(wrong)
        assert (result.events, sum(result.bad.values())) == (0, len(values))
    assert open_lake(kafka_settings.lake).manifest.records() == {}
    produce(_events(3), 0)
    assert run_archive(kafka_settings).events == 3
    with pytest.raises(UsageError, match="holds topic"):
        run_archive(wrong)


def test_a_first_archive_that_was_killed_before_a_valid_event_binds_nothing(
    kafka_settings: Settings, produce: Callable[..., None]
) -> None:
    produce(_events(3), 0)
    lake = open_lake(kafka_settings.lake)
    lake.write("unbound", LAKE_SCHEMA.empty_table(), {})
    lake.write("topic", LAKE_SCHEMA.empty_table(), {"topic_id": "of another"})
    refused = {"topic": "another", "partition": 0, "start": 0, "end": 5, "records": 5, "bad": {"not-json": 5}}
    lake.write("p00000-000000000000000-000000000000005", LAKE_SCHEMA.empty_table(), refused)
    assert run_archive(kafka_settings).events == 3
    assert not lake.has("unbound")


def test_a_topic_with_the_producers_times_is_refused_as_by_the_stream(
    kafka_settings: Settings, admin: KafkaAdminClient
) -> None:
    topic = kafka_settings.kafka.topic
    configs = {"message.timestamp.type": "CreateTime"}
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1, topic_configs=configs)])
    messages = []
    for refused in (lambda: run_archive(kafka_settings), lambda: ensure_topics(kafka_settings.kafka)):
        with pytest.raises(UsageError, match="CreateTime, expected LogAppendTime") as caught:
            refused()
        messages.append((caught.value.message, caught.value.hint))
    assert messages[0] == messages[1]
    assert not open_lake(kafka_settings.lake).manifest.records()


def test_a_mistyped_topic_is_named_with_the_nearest_and_not_made(
    kafka_settings: Settings, activity_topic: str, admin: KafkaAdminClient
) -> None:
    mistyped = dataclasses.replace(kafka_settings.kafka, topic=f"{activity_topic}s")
    with pytest.raises(UsageError, match="no topic") as caught:
        run_archive(dataclasses.replace(kafka_settings, kafka=mistyped))
    assert f"did you mean `{activity_topic}`" in caught.value.hint and "spoor topics create" in caught.value.hint
    assert mistyped.topic not in admin.list_topics()
    assert not open_lake(kafka_settings.lake).manifest.records()
