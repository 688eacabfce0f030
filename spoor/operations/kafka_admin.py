"""Spoor's topics: created where they are missing, refused where they would lose or misdate events, deleted when their
release is retired.

The activity topic takes the broker's append time as its records' time (event times years back would be deleted by
retention within minutes) and is never compacted. Dead letters are compacted by origin, so none is forgotten; embedding
topics are compacted by user, so the last row of each user stays, and earlier ones until they had time to be archived.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spoor.base.errors import InfrastructureError
from spoor.base.numbers import number_text
from spoor.broker.settings import KafkaSettings
from spoor.broker.topics import no_such_topic
from spoor.services.local import require_broker
from spoor.streaming.kafka.broker import (
    DEFAULT_RECORD_BYTES,
    admin_client,
    check_policies,
    dead_letter_bytes,
    no_broker,
)

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
    copies: int | None = None  # of each partition, at least; None: not told
    differs: tuple[str, ...] = ()  # an existing topic's settings that are less than Spoor's own, for people
    config: Mapping[str, str] = field(default_factory=dict, repr=False)

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


def ensure_topics(kafka: KafkaSettings, *, releases: Sequence[str] = (), reads_events: bool = False) -> list[Topic]:
    """The activity topic, the dead letters and one embedding topic per release: what is missing is created. With
    `reads_events` the activity topic must be there: who reads it may have its name wrong.

    Raises UsageError for an existing topic that is compacted where it must not be, not compacted where it must be, or
    whose records carry the producer's time; InfrastructureError if no broker answers or it refuses to create.
    """
    wanted = _wanted(kafka, releases)
    require_broker(kafka)
    with admin_client(kafka) as admin:
        present = set(admin.list_topics())
        if reads_events and kafka.topic not in present:
            raise no_such_topic(kafka, [kafka.topic], present)
        missing = {name: options for name, options in wanted.items() if name not in present}
        if missing:
            _create(admin, kafka, missing)
        found = _described(admin, wanted, created=missing)
        configs = _configs(admin, list(wanted))
    check_policies(kafka, configs, [kafka.embedding_topic(release) for release in releases])
    return found


def create_topics(kafka: KafkaSettings, *, releases: Sequence[str] = (), dry_run: bool = False) -> list[Topic]:
    """As `ensure_topics`, for the command of that purpose: what exists is not judged but compared, and never changed
    (`Topic.differs`). With `dry_run` nothing is created. Raises InfrastructureError as `ensure_topics`."""
    wanted = _wanted(kafka, releases)
    require_broker(kafka)
    with admin_client(kafka) as admin:
        present = set(admin.list_topics())
        missing = {name: options for name, options in wanted.items() if name not in present}
        if dry_run:
            there = {name: options for name, options in wanted.items() if name in present}
            found = [_topic(name, True, kafka.partitions, options) for name, options in missing.items()]
            found += _described(admin, there, created=()) if there else []
        else:
            if missing:
                _create(admin, kafka, missing)
            found = _described(admin, wanted, created=missing)
    topics = {topic.name: topic for topic in found}
    return [_compared(kafka, topics[name], options) for name, options in wanted.items()]


def _described(admin: KafkaAdminClient, wanted: Collection[str], *, created: Collection[str]) -> list[Topic]:
    described = {topic["name"]: topic["partitions"] for topic in admin.describe_topics(list(wanted))}
    configs = _configs(admin, list(wanted))
    return [
        _topic(name, name in created, len(described[name]), configs[name], copies=_copies(described[name]))
        for name in wanted
    ]


def _copies(partitions: Sequence[dict[str, Any]]) -> int | None:
    return min((len(replicas) for each in partitions if (replicas := each.get("replica_nodes"))), default=None)


def _compared(kafka: KafkaSettings, topic: Topic, options: dict[str, str]) -> Topic:
    """With what differs from what Spoor would create; a value that the broker does not tell does not differ."""
    found = {
        "partitions": (str(topic.partitions), str(kafka.partitions)),
        "replication factor": (str(topic.copies or ""), str(kafka.replication_factor)),
        **{name: (topic.config.get(name, ""), value) for name, value in options.items()},
    }
    if topic.created:
        return topic
    differs = (f"{name} is {is_}, not {asked}" for name, (is_, asked) in found.items() if _less(name, is_, asked))
    return replace(topic, differs=tuple(differs))


def _less(name: str, found: str, wanted: str) -> bool:
    """Whether this is not what Spoor asks for: of sizes and times, more is fine, -1 (without end) too."""
    if not found:
        return False
    if name in ("partitions", "replication factor", "max.message.bytes", "retention.ms", "min.compaction.lag.ms"):
        return found != "-1" and int(found) < int(wanted)
    return set(found.split(",")) != set(wanted.split(","))


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


def _topic(name: str, created: bool, partitions: int, config: Mapping[str, str], *, copies: int | None = None) -> Topic:
    policy = config.get("cleanup.policy", "")
    retention = config.get("retention.ms") if "delete" in policy else None
    return Topic(
        name=name,
        created=created,
        partitions=partitions,
        cleanup_policy=policy,
        timestamp_type=config.get("message.timestamp.type", ""),
        retention_ms=None if retention is None else int(retention),
        copies=copies,
        config=config,
    )


def _untyped(admin: KafkaAdminClient) -> Any:
    """The type checker carries stubs of kafka-python 2, which lack these methods' present arguments."""
    return admin


def group_lag(kafka: KafkaSettings, group: str) -> dict[int, int]:
    """Per partition of the activity topic: retained records that the group has not committed. Raises
    InfrastructureError."""
    from kafka import KafkaConsumer
    from kafka.errors import KafkaError
    from kafka.structs import TopicPartition

    try:
        with closing(KafkaConsumer(group_id=group, **kafka.consumer_options())) as consumer:
            partitions = [
                TopicPartition(kafka.topic, p) for p in sorted(consumer.partitions_for_topic(kafka.topic) or ())
            ]
            ends, begins = consumer.end_offsets(partitions), consumer.beginning_offsets(partitions)
            return {tp.partition: ends[tp] - max(consumer.committed(tp) or 0, begins[tp]) for tp in partitions}
    except KafkaError as error:
        raise no_broker(kafka, error) from error
