"""What the broker says about its topics' configuration, for what the batch jobs promise or warn of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from activity.errors import InfrastructureError
from activity.settings import KafkaSettings


def topic_configs(kafka: KafkaSettings, wanted: Callable[[str], bool]) -> dict[str, dict[str, str]]:
    """Topic → its configuration, of the topics whose name is `wanted`. Raises InfrastructureError."""
    timeout_ms = int(kafka.request_timeout_seconds * 1000)
    options: dict[str, Any] = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    try:
        admin: Any = KafkaAdminClient(**kafka.client_options() | options)
        try:
            topics = [topic for topic in admin.list_topics() if wanted(topic)]
            resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
            found = admin.describe_configs(resources, config_filter="all").get("topic", {}) if resources else {}
        finally:
            admin.close()
    except (KafkaError, OSError) as error:
        raise InfrastructureError(
            f"Kafka at {kafka.address} does not answer: {type(error).__name__} {error}".rstrip(),
            hint="start it with `spoor services up`, or check kafka.bootstrap_servers",
        ) from error
    return {topic: {name: config["value"] for name, config in configs.items()} for topic, configs in found.items()}
