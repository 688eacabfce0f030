from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from activity.errors import DataError
from batch.archive import run_archive
from batch.backfill import run_backfill
from feature_repo.names import user_embedding_view
from store.offline import open_offline
from store.online import open_online
from store.rows import embedding_row_to_json


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
    run_backfill(world.settings, offline=False)


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


def test_a_dry_run_lands_no_embeddings(world: Any) -> None:
    _published(world)
    assert run_archive(world.settings, dry_run=True).embedding_rows == 0
    assert _landed(world) == []


def test_a_topic_that_was_made_again_is_told_and_not_taken_for_landed(world: Any, admin: KafkaAdminClient) -> None:
    _published(world)
    run_archive(world.settings)
    topic = world.settings.kafka.embedding_topic("base-1")
    admin.delete_topics([topic], timeout_ms=30_000)
    run_archive(world.settings)  # no topic, nothing to land
    admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)], timeout_ms=30_000)
    with pytest.raises(DataError, match=rf"holds partition \d of topic `{topic}` up to offset \d+, but .* ends at 0"):
        run_archive(world.settings)
