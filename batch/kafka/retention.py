"""How long Kafka keeps the records of a deleted user, which only Kafka can remove; and the time of its oldest event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from spoor.broker.admin import topic_configs
from spoor.broker.reader import TopicReader
from spoor.broker.settings import KafkaSettings

_FOR_EVER_MS = 2**63 - 1  # Kafka's default of max.compaction.lag.ms
_LAST_MS = 253_402_300_799_000  # the end of year 9999; later means unlimited


@dataclass(frozen=True)
class Kept:
    """A topic that may still hold records of a user. `until`: the latest time, ISO 8601; None: no limit is known."""

    topic: str
    until: str | None
    why: str


def kept_until(kafka: KafkaSettings, *, now_ms: int) -> list[Kept]:
    """The existing topics of events, dead letters and every release's embeddings, sorted by name. Raises
    InfrastructureError."""
    letters = "dead letters stay until `spoor dlq replay` closes them"
    return [
        _kept(topic, config, now_ms, letters if topic == kafka.dead_letter_topic else "")
        for topic, config in sorted(topic_configs(kafka, partial(_may_name_users, kafka)).items())
    ]


def oldest_record_ms(kafka: KafkaSettings) -> int | None:
    """Append time of the oldest record on the activity topic, uncommitted ones included; None if it is empty. Raises
    UsageError if the topic does not exist, InfrastructureError."""
    with TopicReader(replace(kafka, isolation_level="read_uncommitted")) as reader:
        times = reader.oldest_times(kafka.topic)
    return min(times.values(), default=None)


def _kept(topic: str, config: Mapping[str, str], now_ms: int, note: str) -> Kept:
    """Kafka deletes a segment once its newest record is past retention; a segment takes records for at most segment.ms.
    Compaction has a date only if max.compaction.lag.ms is set."""
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
    """ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def _date(time_ms: int) -> str | None:
    return iso_time(time_ms) if time_ms < _LAST_MS else None


def _may_name_users(kafka: KafkaSettings, topic: str) -> bool:
    return topic in (kafka.topic, kafka.dead_letter_topic) or topic.startswith(kafka.embedding_topic_prefix)
