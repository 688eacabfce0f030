"""How long Kafka keeps what only Kafka can remove: the records of a user who was forgotten; and the oldest it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from spoor.broker.admin import topic_configs
from spoor.broker.reader import TopicReader
from spoor.broker.settings import KafkaSettings

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
        for topic, config in sorted(topic_configs(kafka, partial(_may_name_users, kafka)).items())
    ]


def oldest_record_ms(kafka: KafkaSettings) -> int | None:
    """When the broker appended the oldest record that the activity topic still has, of whatever transaction; None where
    it has none. Raises UsageError without such a topic, InfrastructureError."""
    with TopicReader(replace(kafka, isolation_level="read_uncommitted")) as reader:
        times = reader.oldest_times(kafka.topic)
    return min(times.values(), default=None)


def _kept(topic: str, config: Mapping[str, str], now_ms: int, note: str) -> Kept:
    """A segment goes when its newest record is past retention, and takes records for segment.ms at most. Compaction
    has a date only where max.compaction.lag.ms sets one."""
    policy, retention = config.get("cleanup.policy", "delete"), int(config.get("retention.ms", -1))
    if "compact" not in policy or ("delete" in policy and retention >= 0):
        if retention < 0:
            return Kept(topic, None, "retention.ms is -1: for ever")
        until = now_ms + retention + int(config.get("segment.ms", 0))
        return Kept(topic, _date(until), "retention.ms + segment.ms")
    if note:
        return Kept(topic, None, note)
    lag = int(config.get("max.compaction.lag.ms", _FOR_EVER_MS))
    until = _date(now_ms + lag)
    return Kept(topic, until, "max.compaction.lag.ms" if until else "older records stay until Kafka compacts the topic")


def iso_time(time_ms: int) -> str:
    """In UTC, to the second."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def _date(time_ms: int) -> str | None:
    return iso_time(time_ms) if time_ms < _LAST_MS else None


def _may_name_users(kafka: KafkaSettings, topic: str) -> bool:
    return topic in (kafka.topic, kafka.dead_letter_topic) or topic.startswith(kafka.embedding_topic_prefix)
