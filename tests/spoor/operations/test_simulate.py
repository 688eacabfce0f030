import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from spoor.activity.events import Event, decode_event, events_table
from spoor.activity.simulator import SimulatorSettings
from spoor.base.errors import InfrastructureError, UsageError
from spoor.config import Settings
from spoor.operations.simulate import run_simulate

DAY_MS = 86_400_000
T0 = 893_286_638_000  # 1998, like MovieLens
EVENTS = [Event(f"usér-{k % 7}", f"item-{k}", "view", "home", T0 + k * 1000) for k in range(101)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "events.parquet"
    pq.write_table(events_table(EVENTS), path)
    return path


def records(settings: Settings) -> list:
    """Everything in the activity topic, by partition and offset."""
    consumer = KafkaConsumer(**settings.kafka.client_options())
    partitions = [TopicPartition(settings.kafka.topic, p) for p in range(settings.kafka.partitions)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    found = []
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for batch in consumer.poll(timeout_ms=1000).values():
            found += batch
    consumer.close()
    return sorted(found, key=lambda record: (record.partition, record.offset))


def test_a_file_s_events_arrive_keyed_by_user_in_order_with_the_broker_s_time(kafka_settings: Settings, file: Path):
    result = run_simulate(kafka_settings, data=file)
    assert (result.events, result.users, result.first_ms, result.last_ms) == (101, 7, T0, T0 + 100_000)
    found = records(kafka_settings)
    decoded = [decode_event(r.value, append_time_ms=r.timestamp, settings=kafka_settings.events) for r in found]
    assert sorted(decoded, key=lambda event: event.timestamp) == EVENTS
    assert all(record.key == event.user_id.encode() for record, event in zip(found, decoded, strict=True))
    assert all(record.timestamp > T0 + 20 * 365 * DAY_MS and record.timestamp_type == 1 for record in found)
    for user in {event.user_id for event in EVENTS}:
        own = [(r.partition, e.timestamp) for r, e in zip(found, decoded, strict=True) if e.user_id == user]
        assert len({partition for partition, _ in own}) == 1
        assert own == sorted(own)


def test_a_range_of_event_time_includes_its_start_and_not_its_end(kafka_settings: Settings, file: Path):
    result = run_simulate(kafka_settings, data=file, from_ms=T0 + 10_000, to_ms=T0 + 13_000)
    assert (result.events, result.first_ms, result.last_ms) == (3, T0 + 10_000, T0 + 12_000)


def test_an_empty_range_sends_nothing(kafka_settings: Settings, file: Path):
    result = run_simulate(kafka_settings, data=file, to_ms=T0)
    assert (result.events, result.users, result.first_ms, result.last_ms) == (0, 0, None, None)
    assert records(kafka_settings) == []


def test_made_up_events_arrive(kafka_settings: Settings):
    synthetic = SimulatorSettings(events=777, from_ms=T0, to_ms=T0 + DAY_MS, users=50, items=60)
    result = run_simulate(kafka_settings, synthetic=synthetic)
    assert result.events == len(records(kafka_settings)) == 777
    assert T0 <= (result.first_ms or 0) <= (result.last_ms or 0) < T0 + DAY_MS


def test_a_rate_is_kept(kafka_settings: Settings, file: Path):
    result = run_simulate(kafka_settings, data=file, rate=200)
    assert result.seconds >= 100 / 200 - 0.05
    assert result.events == 101


def test_a_dry_run_counts_and_needs_no_broker(settings: Settings, file: Path):
    result = run_simulate(settings, data=file, dry_run=True)
    assert (result.events, result.users, result.dry_run, result.seconds) == (101, 7, True, 0.0)


def test_rows_with_ids_that_the_entity_cannot_hold_are_left_out_and_named(settings: Settings, tmp_path: Path):
    rows = ["user_id,item_id,action,surface,timestamp", "7,i,v,s,1700000000000", "007,i,v,s,1700000000000"]
    (tmp_path / "e.csv").write_text("\n".join(rows))
    events = dataclasses.replace(settings.events, user_id_type="int64")
    result = run_simulate(dataclasses.replace(settings, events=events), data=tmp_path / "e.csv", dry_run=True)
    assert result.events == 1 and len(result.refused) == 1 and "line 3, column user_id" in result.refused[0]


def test_a_delivery_that_the_broker_refuses_is_an_error_with_what_was_confirmed(kafka_settings: Settings, file: Path):
    admin = KafkaAdminClient(**kafka_settings.kafka.client_options())
    configs = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "100"}
    admin.create_topics([NewTopic(kafka_settings.kafka.topic, 1, 1, topic_configs=configs)])
    admin.close()
    with pytest.raises(InfrastructureError, match="did not confirm a delivery") as caught:
        run_simulate(kafka_settings, data=file)
    assert "0 events were confirmed" in caught.value.message


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(kafka_settings: Settings, file: Path, rate: float):
    with pytest.raises(UsageError, match="expected above 0"):
        run_simulate(kafka_settings, data=file, rate=rate)


def test_a_bad_row_of_the_file_is_refused_before_anything_is_sent(kafka_settings: Settings, tmp_path: Path):
    path = tmp_path / "events.jsonl"
    rows = [event._asdict() for event in EVENTS[:3]]
    rows[2]["user_id"] = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="user_id"):
        run_simulate(kafka_settings, data=path)


def test_without_a_broker_nothing_hangs(settings: Settings, file: Path):
    kafka = dataclasses.replace(settings.kafka, request_timeout_seconds=1.0)
    with pytest.raises(InfrastructureError, match="no Kafka broker answers"):
        run_simulate(dataclasses.replace(settings, kafka=kafka), data=file)


@pytest.mark.parametrize(("first", "last"), [(0, DAY_MS), (T0, 2**46)])
def test_made_up_events_that_a_worker_would_refuse_are_refused(settings: Settings, first: int, last: int):
    synthetic = SimulatorSettings(events=5, from_ms=first, to_ms=last)
    with pytest.raises(UsageError, match=r"the (first|last) event would be of"):
        run_simulate(settings, synthetic=synthetic, dry_run=True)
