"""The admin client: topics, their configuration, and consumer groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from spoor.base.errors import InfrastructureError
from spoor.broker.clients import kafka_errors, timeouts
from spoor.broker.settings import KafkaSettings

_READY_MS = 30_000  # until created topics have leaders


class Admin:
    """A connected admin client. Every method raises InfrastructureError (`kafka_errors`)."""

    def __init__(self, kafka: KafkaSettings) -> None:
        from kafka import KafkaAdminClient

        self._kafka = kafka
        with kafka_errors(kafka):
            self._client: Any = KafkaAdminClient(**kafka.client_options() | timeouts(kafka))

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ready(self) -> bool:
        """Whether at least one broker is ready for work."""
        with kafka_errors(self._kafka):
            return any(not broker.get("is_fenced") for broker in self._client.describe_cluster()["brokers"])

    def topics(self) -> set[str]:
        with kafka_errors(self._kafka):
            return set(self._client.list_topics())

    def described(self, topics: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Topic → `topic_id` and `partitions`, as kafka-python names them."""
        with kafka_errors(self._kafka):
            return {topic["name"]: topic for topic in self._client.describe_topics(list(topics))}

    def configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """Topic → its configuration, as far as the broker reports it."""
        from kafka.admin import ConfigResource, ConfigResourceType

        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        if not resources:
            return {}
        with kafka_errors(self._kafka):
            found = self._client.describe_configs(resources, config_filter="all").get("topic", {})
        return {topic: {name: config["value"] for name, config in configs.items()} for topic, configs in found.items()}

    def create(self, topics: Mapping[str, Mapping[str, str]]) -> None:
        """Creates the topics, each with its configuration, and waits until they are ready. If another process creates a
        topic at the same moment, that topic stays unchanged."""
        from kafka.errors import KafkaError, TopicAlreadyExistsError

        kafka = self._kafka
        for name, config in topics.items():
            options = {
                "num_partitions": kafka.partitions,
                "replication_factor": kafka.replication_factor,
                "configs": dict(config),
            }
            try:
                self._client.create_topics({name: options})
            except TopicAlreadyExistsError:
                continue
            except KafkaError as error:
                raise InfrastructureError(
                    f"topic `{name}` could not be created at {kafka.address}: {error}",
                    hint="check kafka.partitions, kafka.replication_factor and the right to CREATE, or create it "
                    "yourself: " + ", ".join(f"{key}={value}" for key, value in config.items()),
                ) from error
        if topics:
            with kafka_errors(kafka):
                self._client.wait_for_topics(list(topics), timeout_ms=_READY_MS)

    def delete(self, topic: str) -> bool:
        """Returns whether the topic existed."""
        from kafka.errors import KafkaError, UnknownTopicOrPartitionError

        if topic not in self.topics():
            return False
        try:
            self._client.delete_topics([topic])
        except UnknownTopicOrPartitionError:
            return False  # another process was faster
        except KafkaError as error:
            raise InfrastructureError(
                f"topic `{topic}` could not be deleted at {self._kafka.address}: {error}",
                hint="check the right to DELETE and delete.topic.enable, then run it again, or delete it yourself",
            ) from error
        return True

    def group(self, name: str) -> dict[str, Any] | None:
        """`group_state` and `members` of a consumer group, as kafka-python names them; None while it has no
        coordinator."""
        from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError

        with kafka_errors(self._kafka):
            try:
                return self._client.describe_groups([name])[name]
            except (CoordinatorLoadInProgressError, CoordinatorNotAvailableError):
                return None

    def group_metadata(self, name: str, topic: str) -> dict[int, str]:
        """By partition of the topic: the metadata beside the group's committed offset."""
        with kafka_errors(self._kafka):
            offsets = self._client.list_group_offsets(name)[name]
        return {tp.partition: offset.metadata for tp, offset in offsets.items() if tp.topic == topic}


def topic_configs(kafka: KafkaSettings, wanted: Callable[[str], bool]) -> dict[str, dict[str, str]]:
    """Topic → its configuration, for each topic with a `wanted` name. Raises InfrastructureError."""
    with Admin(kafka) as admin:
        return admin.configs(topic for topic in admin.topics() if wanted(topic))


def topic_ids(kafka: KafkaSettings, topics: Collection[str]) -> dict[str, str]:
    """Topic → the id that Kafka assigned at its creation, for existing topics; brokers before 2.8 have no ids. Raises
    InfrastructureError."""
    with Admin(kafka) as admin:
        found = {name: topic.get("topic_id") for name, topic in admin.described(topics).items()}
    return {name: str(topic_id) for name, topic_id in found.items() if topic_id not in (None, UUID(int=0))}
