"""How long Kafka keeps what only Kafka can remove: the records of a user who was forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from activity.errors import InfrastructureError
from activity.settings import KafkaSettings

_FOR_EVER_MS = 2**63 - 1  # Kafka's default of max.compaction.lag.ms
_LAST_MS = 253_402_300_799_000  # the end of year 9999: later is for ever


@dataclass(frozen=True)
class Kept:
    """A topic that may hold records of a user still. `until`: the latest time, ISO 8601; None: Kafka states none."""

    topic: str
    until: str | None
    why: str


def kept_until(kafka: KafkaSettings, *, now_ms: int) -> list[Kept]:
    """Of the events, the dead letters and every release's embeddings, where the topic exists, by name. Raises
    InfrastructureError."""
    letters = "dead letters stay until `spoor dlq replay` closes them"
    return [
        _kept(topic, config, now_ms, letters if topic == kafka.dead_letter_topic else "")
        for topic, config in sorted(_configs(kafka).items())
    ]


def _kept(topic: str, config: Mapping[str, str], now_ms: int, note: str) -> Kept:
    """A segment goes when its newest record is past retention, and takes records for segment.ms at most. Compaction
    has a date only where max.compaction.lag.ms sets one."""
    if "compact" not in config.get("cleanup.policy", "delete"):
        retention = int(config.get("retention.ms", -1))
        if retention < 0:
            return Kept(topic, None, "retention.ms is -1: for ever")
        until = now_ms + retention + int(config.get("segment.ms", 0))
        return Kept(topic, _date(until), "retention.ms + segment.ms")
    if note:
        return Kept(topic, None, note)
    lag = int(config.get("max.compaction.lag.ms", _FOR_EVER_MS))
    until = _date(now_ms + lag)
    return Kept(topic, until, "max.compaction.lag.ms" if until else "older records stay until Kafka compacts the topic")


def _date(time_ms: int) -> str | None:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds") if time_ms < _LAST_MS else None


def _configs(kafka: KafkaSettings) -> dict[str, dict[str, str]]:
    timeout_ms = int(kafka.request_timeout_seconds * 1000)
    options: dict[str, Any] = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    try:
        admin: Any = KafkaAdminClient(**kafka.client_options() | options)
        try:
            topics = [topic for topic in admin.list_topics() if _may_name_users(kafka, topic)]
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


def _may_name_users(kafka: KafkaSettings, topic: str) -> bool:
    return topic in (kafka.topic, kafka.dead_letter_topic) or topic.startswith(kafka.embedding_topic_prefix)
