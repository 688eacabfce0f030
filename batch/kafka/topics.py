"""What the broker says about its topics: configuration, for what the batch jobs promise or warn of, and identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from spoor.base.errors import DataError, InfrastructureError
from spoor.base.files import Manifest
from spoor.broker.settings import KafkaSettings


def topic_configs(kafka: KafkaSettings, wanted: Callable[[str], bool]) -> dict[str, dict[str, str]]:
    """Topic → its configuration, of the topics whose name is `wanted`. Raises InfrastructureError."""
    with _admin(kafka) as admin:
        topics = [topic for topic in admin.list_topics() if wanted(topic)]
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        found = admin.describe_configs(resources, config_filter="all").get("topic", {}) if resources else {}
    return {topic: {name: config["value"] for name, config in configs.items()} for topic, configs in found.items()}


def topic_ids(kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """Topic → the id that Kafka gave it when it was made, of those that are there; brokers before 2.8 tell none. Raises
    InfrastructureError."""
    with _admin(kafka) as admin:
        found = {topic["name"]: topic.get("topic_id") for topic in admin.describe_topics(list(topics))}
    return {name: str(topic_id) for name, topic_id in found.items() if topic_id not in (None, UUID(int=0))}


def check_same_topic(topic: str, topic_id: str | None, noted: Manifest, key: str, *, hint: str) -> None:
    """Raises DataError where the manifest's entry `key` (`{"topic_id": …}`) is of another topic of that name: offsets
    begin anew then, and what the manifest says of them is not about these records."""
    entry = noted.get(key)
    if entry is not None and topic_id is not None and entry["topic_id"] != topic_id:
        raise DataError(
            f"topic `{topic}` was deleted and made again since its records were landed: its id is {topic_id}, was "
            f"{entry['topic_id']}",
            hint=f"{hint}. If it has the same records at the same offsets, as a copy of a cluster may, remove "
            f"{noted.folder / key}.json",
        )


@contextmanager
def _admin(kafka: KafkaSettings) -> Iterator[Any]:
    timeout_ms = int(kafka.request_timeout_seconds * 1000)
    options: dict[str, Any] = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    try:
        admin = KafkaAdminClient(**kafka.client_options() | options)
        try:
            yield admin
        finally:
            admin.close()
    except (KafkaError, OSError) as error:
        raise InfrastructureError(
            f"Kafka at {kafka.address} does not answer: {type(error).__name__} {error}".rstrip(),
            hint=kafka.way_to_a_broker,
        ) from error
