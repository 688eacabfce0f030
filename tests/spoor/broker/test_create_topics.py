import dataclasses

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from spoor.base.errors import InfrastructureError, UsageError
from spoor.broker.create_topics import delete_topic, ensure_topics
from spoor.config import Settings


def create(settings: Settings, topic: str, **configs: str) -> None:
    named = {name.replace("_", "."): value for name, value in configs.items()}
    admin = KafkaAdminClient(**settings.kafka.client_options())
    admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1, topic_configs=named)])
    admin.close()


def test_missing_topics_are_created_with_the_broker_s_time_and_the_configured_retention(kafka_settings: Settings):
    kafka = dataclasses.replace(kafka_settings.kafka, retention_hours=5, partitions=3)
    activity, letters, embeddings = ensure_topics(kafka, releases=["base-1"])
    assert (activity.name, activity.created, activity.partitions) == (kafka.topic, True, 3)
    assert (activity.timestamp_type, activity.cleanup_policy, activity.retention_ms) == (
        "LogAppendTime",
        "delete",
        5 * 3_600_000,
    )
    assert activity.describe() == f"{kafka.topic}: 3 partitions, kept 5 h, created"
    assert (letters.name, letters.cleanup_policy) == (kafka.dead_letter_topic, "compact")
    assert (embeddings.name, embeddings.cleanup_policy) == (kafka.embedding_topic("base-1"), "compact")


def test_a_second_call_finds_what_the_first_made(kafka_settings: Settings):
    first = ensure_topics(kafka_settings.kafka)
    second = ensure_topics(kafka_settings.kafka)
    assert [topic.created for topic in first] == [True, True]
    assert second == [dataclasses.replace(topic, created=False) for topic in first]


def test_retention_is_what_the_topic_has_not_what_the_settings_say(kafka_settings: Settings):
    create(kafka_settings, kafka_settings.kafka.topic, message_timestamp_type="LogAppendTime", retention_ms="7200000")
    activity, *_ = ensure_topics(kafka_settings.kafka)
    assert activity.describe() == f"{kafka_settings.kafka.topic}: 3 partitions, kept 2 h"


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_a_compacted_activity_topic_is_refused(kafka_settings: Settings, policy: str):
    create(kafka_settings, kafka_settings.kafka.topic, cleanup_policy=policy)
    with pytest.raises(UsageError, match="compacted") as caught:
        ensure_topics(kafka_settings.kafka)
    assert "cleanup.policy=delete" in caught.value.hint


def test_an_activity_topic_with_the_producer_s_time_is_refused(kafka_settings: Settings):
    create(kafka_settings, kafka_settings.kafka.topic, message_timestamp_type="CreateTime")
    with pytest.raises(UsageError, match=r"CreateTime, expected LogAppendTime") as caught:
        ensure_topics(kafka_settings.kafka)
    assert "message.timestamp.type=LogAppendTime" in caught.value.hint


def test_an_embedding_topic_that_forgets_users_is_refused(kafka_settings: Settings):
    create(kafka_settings, kafka_settings.kafka.embedding_topic("base-1"), cleanup_policy="delete")
    with pytest.raises(UsageError, match="not compacted"):
        ensure_topics(kafka_settings.kafka, releases=["base-1"])


def test_what_the_broker_cannot_create_is_an_infrastructure_error(kafka_settings: Settings):
    with pytest.raises(InfrastructureError, match="could not be created") as caught:
        ensure_topics(dataclasses.replace(kafka_settings.kafka, replication_factor=3))
    assert "replication_factor" in caught.value.hint


def test_without_a_broker_the_error_says_how_to_start_one(settings: Settings):
    kafka = dataclasses.replace(settings.kafka, request_timeout_seconds=1.0)
    with pytest.raises(InfrastructureError, match="no Kafka broker answers") as caught:
        ensure_topics(kafka)
    assert "spoor services up" in caught.value.hint


def test_a_topic_is_deleted_once_and_the_others_stay(kafka_settings: Settings):
    kafka = kafka_settings.kafka
    ensure_topics(kafka, releases=["base-1", "base-2"])
    assert [delete_topic(kafka, kafka.embedding_topic("base-1")) for _ in range(2)] == [True, False]
    created = {topic.name: topic.created for topic in ensure_topics(kafka, releases=["base-1", "base-2"])}
    assert created[kafka.embedding_topic("base-1")] and not created[kafka.embedding_topic("base-2")]


def test_deleting_without_a_broker_is_an_infrastructure_error(settings: Settings):
    with pytest.raises(InfrastructureError, match="no Kafka broker answers"):
        delete_topic(settings.kafka, "user-embeddings.base-1")
