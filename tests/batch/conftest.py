"""Topics with known contents on the session's broker, for the batch jobs' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from activity.events import Event, encode_event
from spoor.config import Settings

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
