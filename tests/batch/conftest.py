"""Topics with known contents on the session's broker, for the batch jobs' tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from spoor.activity.events import Event, encode_event
from spoor.activity.packing import unpack
from spoor.batch.kafka.archive import run_archive
from spoor.batch.users.backfill import run_backfill
from spoor.config import Settings
from spoor.store import repo
from spoor.store.online import open_online
from spoor.store.rows import EmbeddingRow, embedding_row_from_record
from tests.releases import save_untrained_release
from tests.sql import newest_by_sql
from tests.topics import topic_records

Produce = Callable[[Sequence[Event | bytes | None], int], None]


@pytest.fixture
def admin(kafka_settings: Settings) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(**kafka_settings.kafka.client_options())
    yield client
    client.close()


@pytest.fixture
def activity_topic(kafka_settings: Settings, admin: KafkaAdminClient) -> str:
    """An activity topic of this test alone: two partitions, record times by the broker."""
    topic = kafka_settings.kafka.topic
    configs = {"message.timestamp.type": "LogAppendTime"}
    admin.create_topics(
        [NewTopic(topic, num_partitions=2, replication_factor=1, topic_configs=configs)], timeout_ms=30_000
    )
    return topic


@pytest.fixture
def produce(kafka_settings: Settings, activity_topic: str) -> Iterator[Produce]:
    """produce(values, partition): events (keyed by their user) or raw values, in order, to one partition."""
    producer = KafkaProducer(**kafka_settings.kafka.client_options())

    def send(values: Sequence[Event | bytes | None], partition: int) -> None:
        for value in values:
            key = value.user_id.encode() if isinstance(value, Event) else b"somebody"
            data = encode_event(value) if isinstance(value, Event) else value
            producer.send(activity_topic, key=key, value=data, partition=partition)
        producer.flush(timeout=30)

    yield send
    producer.close()


ITEM_IDS = [f"item-{n}" for n in range(40)]
TRAINED_THROUGH_MS = 900_000_000_000


@dataclasses.dataclass(frozen=True)
class World:
    """A Feast repo with one applied release `base-1`, an activity topic, and what was produced to it."""

    settings: Settings
    produce: Produce

    def add_release(self, name: str, *, seed: int = 0, trained_through_ms: int = TRAINED_THROUGH_MS) -> None:
        """A tiny release (untrained: its vectors are as good as any here) and its views."""
        save_untrained_release(
            self.settings.features.releases_folder / name,
            items=ITEM_IDS,
            actions=["view", "buy"],
            surfaces=["web"],
            seed=seed,
            trained_through_ms=trained_through_ms,
        )
        repo.apply(self.settings.features)

    def events(self, seed: int, count: int, *, users: int = 20) -> list[Event]:
        """Random events from TRAINED_THROUGH_MS on, many at equal times, over four days."""
        random = np.random.default_rng(seed)
        columns = zip(
            random.integers(0, users, count),
            random.integers(0, 50, count),  # a few items are unknown to the release
            random.integers(0, 2, count),
            TRAINED_THROUGH_MS + random.integers(0, 400, count) * 864_000,
            strict=True,
        )
        return [Event(f"user-{u}", f"item-{i}", ("view", "buy")[a], "web", int(t)) for u, i, a, t in columns]


@pytest.fixture
def world(kafka_settings: Settings, produce: Produce) -> World:
    history = dataclasses.replace(kafka_settings.history, max_events=8)
    settings = dataclasses.replace(kafka_settings, history=history)
    repo.create_repo(
        settings.features.feature_repo,
        online_store={"type": "sqlite"},
        state_folder=settings.state_folder / "feast",
    )
    world = World(settings, produce)
    world.add_release("base-1")
    return world


@pytest.fixture
def filled(world: World) -> World:
    """`world` with 20 users produced, archived and backfilled."""
    world.produce(world.events(1, 200), 0)
    run_archive(world.settings)
    run_backfill(world.settings)
    return world


def _last_records(settings: Settings, release: str) -> dict[str, EmbeddingRow]:
    """The last record of every user on the release's topic."""
    records = topic_records(settings.kafka, settings.kafka.embedding_topic(release))
    return {record.key.decode(): embedding_row_from_record(record.value) for record in records}


@pytest.fixture
def last_records() -> Callable[[Settings, str], dict[str, EmbeddingRow]]:
    return _last_records


def _online_histories(settings: Settings) -> dict[str, list[tuple]]:
    """What the store holds, by user."""
    online = open_online(settings.features)
    users = sorted(online.user_ids())
    histories = unpack([user.history or b"" for user in online.read(users, [])])
    return {user: histories[row].tolist() for row, user in enumerate(users)}


@pytest.fixture
def online_histories() -> Callable[[Settings], dict[str, list[tuple]]]:
    return _online_histories


@pytest.fixture
def sql_histories() -> Callable[..., dict[str, list[tuple]]]:
    return newest_by_sql
