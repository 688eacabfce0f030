from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic

from spoor.base.errors import DataError
from spoor.batch.kafka.archive import run_archive
from spoor.batch.users.backfill import run_backfill
from spoor.feature_repo.names import user_embedding_view
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.rows import embedding_row_to_json
from tests.conftest import wait_until
from tests.topics import topic_records

EXAMPLE = Path(__file__).parents[3] / "examples" / "follow_embeddings.py"


def _landed(world: Any) -> list[dict[str, Any]]:
    """Rows of the offline log that came from the topic."""
    offline = open_offline(world.settings.features)
    view = user_embedding_view("base-1")
    keys = [key for key in offline.manifest(view).records() if key.startswith("published-")]
    rows = offline.read(view).to_pylist()
    return sorted(rows, key=lambda row: (row["user_id"], row["revision"])) if keys else []


def _published(world: Any) -> None:
    """20 users' rows on the topic, and none in the offline log."""
    world.produce(world.events(1, 200), 0)
    run_archive(world.settings)
    run_backfill(world.settings, into="online")


def test_published_rows_land_in_the_offline_log_once(world: Any) -> None:
    _published(world)
    assert run_archive(world.settings).embedding_rows == 20
    online = open_online(world.settings.features)
    rows = _landed(world)
    stored = online.read_embeddings("base-1", [row["user_id"] for row in rows])
    assert [row["user_id"] for row in rows] == sorted(online.user_ids())
    for row, found in zip(rows, stored, strict=True):
        assert found is not None and np.array_equal(np.float32(row["embedding"]), found.embedding)
        assert (row["revision"], row["created_ms"]) == (found.revision, found.created_ms)
    assert run_archive(world.settings).embedding_rows == 0
    assert len(_landed(world)) == 20


def test_what_is_no_row_is_counted_and_a_forgotten_user_passed_over(world: Any) -> None:
    _published(world)
    online = open_online(world.settings.features)
    (row,) = online.read_embeddings("base-1", ["user-1"])
    assert row is not None
    producer = KafkaProducer(**world.settings.kafka.client_options())
    good = embedding_row_to_json(dataclasses.replace(row, revision=9))
    for value in (b"no row", None, good):
        producer.send(world.settings.kafka.embedding_topic("base-1"), key=b"user-1", value=value)
    producer.close()
    result = run_archive(world.settings)
    assert (result.embedding_rows, result.bad_embedding_rows) == (21, 1)
    assert [row["revision"] for row in _landed(world) if row["user_id"] == "user-1"] == [1, 9]


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("user-2", {}),
        ("user-1", {"model_version": "base-2"}),
        ("user-1", {"embedding": np.float32([1, 0, 0])}),
        ("user-1", {"embedding": np.full(16, np.nan, np.float32)}),
        ("user-1", {"embedding": np.full(16, 7, np.float32)}),
    ],
    ids=["of another user", "of another release", "of another dimension", "no numbers", "no vector of norm 1"],
)
def test_a_row_that_is_none_of_its_users_and_its_release_is_counted_named_and_left_out(
    world: Any, caplog: pytest.LogCaptureFixture, key: str, changed: dict[str, Any]
) -> None:
    _published(world)
    (row,) = open_online(world.settings.features).read_embeddings("base-1", ["user-1"])
    assert row is not None and row.embedding.shape == (16,)
    kafka = world.settings.kafka
    with KafkaProducer(**kafka.client_options()) as producer:
        value = embedding_row_to_json(dataclasses.replace(row, revision=9, **changed))
        sent = producer.send(kafka.embedding_topic("base-1"), key=key.encode(), value=value).get(timeout=30)
    result = run_archive(world.settings)
    assert (result.embedding_rows, result.bad_embedding_rows) == (20, 1)
    assert f"{sent.topic}, partition {sent.partition}, offset {sent.offset}: " in caplog.text
    assert 9 not in {row["revision"] for row in _landed(world)}
    assert run_archive(world.settings).bad_embedding_rows == 0  # once, and the next run goes on behind it


def test_a_topic_of_both_forms_is_archived_and_followed(world: Any) -> None:
    _published(world)
    in_arrow = dataclasses.replace(world.settings.kafka, embedding_format="arrow")
    world = dataclasses.replace(world, settings=dataclasses.replace(world.settings, kafka=in_arrow))
    world.produce(world.events(2, 60, users=8), 0)
    run_archive(world.settings)
    run_backfill(world.settings, into="online")
    topic = in_arrow.embedding_topic("base-1")
    with KafkaProducer(**in_arrow.client_options()) as producer:
        producer.send(topic, key=b"user-1", value=None)
    values = [record.value for record in topic_records(in_arrow, topic) if record.value is not None]
    assert {value[:1] for value in values} == {b"{", b"\xff"}
    assert run_archive(world.settings).embedding_rows == len(values) - 20  # JSON had landed before

    command = [sys.executable, str(EXAMPLE), in_arrow.address, topic, "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = map(json.loads, done.stdout.splitlines())
    followed = {line["user_id"]: line for line in lines}
    assert followed.pop("user-1") == {"user_id": "user-1"}
    online = open_online(world.settings.features)
    users = sorted(set(online.user_ids()) - {"user-1"})
    assert sorted(followed) == users
    for user, row in zip(users, online.read_embeddings("base-1", users), strict=True):
        assert row is not None and followed[user]["revision"] == row.revision
        assert np.array_equal(np.float32(followed[user]["embedding"]), row.embedding)


def test_rows_that_compaction_was_faster_at_are_told_and_the_lag_checked(
    world: Any, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _published(world)
    topic = world.settings.kafka.embedding_topic("base-1")
    run_archive(world.settings)
    assert "compacted" not in caplog.text
    at_once = {"min.compaction.lag.ms": 0, "min.cleanable.dirty.ratio": 0.0, "segment.ms": 1}
    broker = ConfigResource(ConfigResourceType.BROKER, "1", {"log.cleaner.backoff.ms": 100})
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, at_once), broker])
    value = topic_records(world.settings.kafka, topic)[0].value
    with KafkaProducer(**world.settings.kafka.client_options()) as producer:
        for _ in range(4):  # each in a segment of its own, of which the last stays open
            producer.send(topic, key=b"user-1", value=value, partition=0).get(timeout=30)
    wait_until(lambda: len(topic_records(world.settings.kafka, topic)) < 24, "Kafka has compacted the topic")
    admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, "1", {"log.cleaner.backoff.ms": 15_000})])
    caplog.clear()
    result = run_archive(world.settings)
    assert 0 < result.compacted_embedding_rows < 4
    assert f"{result.compacted_embedding_rows} records were compacted before they were archived" in caplog.text
    assert f"topic `{topic}` may be compacted after 0 ms" in caplog.text


def test_a_dry_run_lands_no_embeddings(world: Any) -> None:
    _published(world)
    assert run_archive(world.settings, dry_run=True).embedding_rows == 0
    assert _landed(world) == []


@pytest.mark.parametrize("noted", [True, False], ids=["", "landed by a version that did not note the id"])
def test_a_topic_that_was_made_again_is_told_and_not_taken_for_landed(
    world: Any, admin: KafkaAdminClient, noted: bool
) -> None:
    _published(world)
    run_archive(world.settings)
    topic = world.settings.kafka.embedding_topic("base-1")
    if not noted:
        open_offline(world.settings.features).manifest(user_embedding_view("base-1")).remove("published-topic")
    admin.delete_topics([topic], timeout_ms=30_000)
    run_archive(world.settings)  # no topic, nothing to land
    admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)], timeout_ms=30_000)
    found = r"deleted and made again" if noted else r"holds partition \d of topic .* to offset \d+, but .* ends at 0"
    with pytest.raises(DataError, match=found) as raised:
        run_archive(world.settings)
    files = raised.value.hint.partition("remove ")[2].partition("*.json")[0]
    for path in Path(files).parent.glob("published-*.json"):  # as the hint says
        path.unlink()
    assert run_archive(world.settings).embedding_rows == 0
