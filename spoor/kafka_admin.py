"""Spoor's topics: created where they are missing, refused where they would lose or misdate events, deleted when their
release is retired.

The activity topic takes the broker's append time as its records' time (event times years back would be deleted by
retention within minutes) and is never compacted. Dead letters are compacted by origin, so none is forgotten; embedding
topics are compacted by user, so the last row of each user stays, and earlier ones until they had time to be archived.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from activity.errors import InfrastructureError, UsageError
from activity.numbers import number_text
from activity.settings import KafkaSettings
from spoor.services import require_broker
from streaming.broker import DEFAULT_RECORD_BYTES, admin_client, check_policies, dead_letter_bytes, no_broker

if TYPE_CHECKING:
    from kafka import KafkaAdminClient

_HOUR_MS = 3_600_000
_READY_MS = 30_000


@dataclass(frozen=True)
class Topic:
    name: str
    created: bool  # by this call
    partitions: int
    cleanup_policy: str  # "" where the broker does not tell
    timestamp_type: str  # CreateTime or LogAppendTime; "" where the broker does not tell
    retention_ms: int | None  # None: the broker does not tell, or the topic is compacted; -1: for ever

    def describe(self) -> str:
        """One line for people, e.g. `activity: 4 partitions, kept 168 h, created`."""
        kept = (
            f"cleanup.policy={self.cleanup_policy or 'unknown'}"
            if self.retention_ms is None
            else "kept for ever"
            if self.retention_ms < 0
            else f"kept {number_text(self.retention_ms / _HOUR_MS)} h"
        )
        return f"{self.name}: {self.partitions} partitions, {kept}" + (", created" if self.created else "")


def ensure_topics(kafka: KafkaSettings, *, releases: Sequence[str] = ()) -> list[Topic]:
    """The activity topic, the dead letters and one embedding topic per release: what is missing is created.

    Raises UsageError for an existing topic that is compacted where it must not be, not compacted where it must be, or
    whose records carry the producer's time; InfrastructureError if no broker answers or it refuses to create.
    """
    wanted = _wanted(kafka, releases)
    require_broker(kafka)
    with admin_client(kafka) as admin:
        present = set(admin.list_topics())
        missing = {name: options for name, options in wanted.items() if name not in present}
        if missing:
            _create(admin, kafka, missing)
        partitions = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(list(wanted))}
        configs = _configs(admin, list(wanted))
    check_policies(kafka, configs, [kafka.embedding_topic(release) for release in releases])
    _check_record_time(kafka, configs[kafka.topic])
    return [_topic(name, name in missing, partitions[name], configs[name]) for name in wanted]


def delete_topic(kafka: KafkaSettings, topic: str) -> bool:
    """Returns whether it was there. Raises InfrastructureError if no broker answers or it refuses."""
    from kafka.errors import KafkaError, UnknownTopicOrPartitionError

    require_broker(kafka)
    with admin_client(kafka) as admin:
        if topic not in set(admin.list_topics()):
            return False
        try:
            admin.delete_topics([topic])
        except UnknownTopicOrPartitionError:
            return False  # somebody else was faster
        except KafkaError as error:
            raise InfrastructureError(
                f"topic `{topic}` could not be deleted at {kafka.address}: {error}",
                hint="check the right to DELETE and delete.topic.enable, then run it again, or delete it yourself",
            ) from error
    return True


def _wanted(kafka: KafkaSettings, releases: Sequence[str]) -> dict[str, dict[str, str]]:
    """Topic → configuration with which it is created."""
    activity = {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": str(kafka.retention_hours * _HOUR_MS),
    }
    letters = {"cleanup.policy": "compact", "max.message.bytes": str(dead_letter_bytes(DEFAULT_RECORD_BYTES))}
    embeddings = {kafka.embedding_topic(release): kafka.embedding_topic_config for release in releases}
    return {kafka.topic: activity, kafka.dead_letter_topic: letters, **embeddings}


def _create(admin: KafkaAdminClient, kafka: KafkaSettings, topics: dict[str, dict[str, str]]) -> None:
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    for name, configs in topics.items():
        options = {
            "num_partitions": kafka.partitions,
            "replication_factor": kafka.replication_factor,
            "configs": configs,
        }
        try:
            _untyped(admin).create_topics({name: options})
        except TopicAlreadyExistsError:  # someone else was faster; what they made is checked like any other
            pass
        except KafkaError as error:
            raise InfrastructureError(
                f"topic `{name}` could not be created at {kafka.address}: {error}",
                hint="check kafka.partitions, kafka.replication_factor and the right to CREATE, or create it yourself: "
                + ", ".join(f"{key}={value}" for key, value in configs.items()),
            ) from error
    _untyped(admin).wait_for_topics(list(topics), timeout_ms=_READY_MS)


def _configs(admin: KafkaAdminClient, topics: Sequence[str]) -> dict[str, dict[str, str]]:
    from kafka.admin import ConfigResource, ConfigResourceType

    resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    found = _untyped(admin).describe_configs(resources, config_filter="all").get("topic", {})
    return {topic: {name: config["value"] for name, config in found.get(topic, {}).items()} for topic in topics}


def _check_record_time(kafka: KafkaSettings, config: dict[str, str]) -> None:
    found = config.get("message.timestamp.type", "LogAppendTime")
    if found != "LogAppendTime":
        raise UsageError(
            f"topic `{kafka.topic}` has message.timestamp.type={found}, expected LogAppendTime: with the producer's "
            "time, retention deletes replayed events at once",
            hint=f"{kafka.topic_change(kafka.topic, 'message.timestamp.type=LogAppendTime')}, or set kafka.topic to "
            "another topic",
        )


def _topic(name: str, created: bool, partitions: int, config: dict[str, str]) -> Topic:
    policy = config.get("cleanup.policy", "")
    retention = config.get("retention.ms") if "delete" in policy else None
    return Topic(
        name=name,
        created=created,
        partitions=partitions,
        cleanup_policy=policy,
        timestamp_type=config.get("message.timestamp.type", ""),
        retention_ms=None if retention is None else int(retention),
    )


def _untyped(admin: KafkaAdminClient) -> Any:
    """The type checker carries stubs of kafka-python 2, which lack these methods' present arguments."""
    return admin


def group_lag(kafka: KafkaSettings, group: str) -> dict[int, int]:
    """Per partition of the activity topic: retained records that the group has not committed. Raises
    InfrastructureError."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError

    try:
        with closing(KafkaConsumer(group_id=group, **kafka.consumer_options())) as consumer:
            partitions = [
                TopicPartition(kafka.topic, p) for p in sorted(consumer.partitions_for_topic(kafka.topic) or ())
            ]
            ends, begins = consumer.end_offsets(partitions), consumer.beginning_offsets(partitions)
            return {tp.partition: ends[tp] - max(consumer.committed(tp) or 0, begins[tp]) for tp in partitions}
    except KafkaError as error:
        raise no_broker(kafka, error) from error
