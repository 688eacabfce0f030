"""Creates Spoor's missing topics, compares existing ones, and deletes a retired release's topic."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spoor.base.numbers import number_text
from spoor.broker.admin import Admin
from spoor.broker.reach import require_broker
from spoor.broker.settings import KafkaSettings
from spoor.broker.topics import HOUR_MS, check_policies, no_such_topic, topic_settings


@dataclass(frozen=True)
class Topic:
    name: str
    created: bool  # by this call
    partitions: int
    copies: int | None = None  # of each partition, at least; None: not reported
    differs: tuple[str, ...] = ()  # an existing topic's settings below Spoor's own, for messages
    config: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def cleanup_policy(self) -> str:
        """Empty if the broker does not report it."""
        return self.config.get("cleanup.policy", "")

    @property
    def timestamp_type(self) -> str:
        """CreateTime or LogAppendTime; empty if the broker does not report it."""
        return self.config.get("message.timestamp.type", "")

    @property
    def retention_ms(self) -> int | None:
        """None: not reported, or the topic is compacted; -1: unlimited."""
        retention = self.config.get("retention.ms") if "delete" in self.cleanup_policy else None
        return None if retention is None else int(retention)

    def describe(self) -> str:
        """One line for people, e.g. `activity: 4 partitions, kept 168 h, created`."""
        kept = (
            f"cleanup.policy={self.cleanup_policy or 'unknown'}"
            if self.retention_ms is None
            else "kept for ever"
            if self.retention_ms < 0
            else f"kept {number_text(self.retention_ms / HOUR_MS)} h"
        )
        return f"{self.name}: {self.partitions} partitions, {kept}" + (", created" if self.created else "")


def ensure_topics(kafka: KafkaSettings, *, releases: Sequence[str] = (), reads_events: bool = False) -> list[Topic]:
    """Creates missing topics: the activity topic, the dead letters and one embedding topic per release. With
    `reads_events` the activity topic must exist: the name in the settings may be wrong.

    Raises UsageError for a missing activity topic with `reads_events`, and for an existing topic with the wrong
    compaction, the producer's time or a record size too small for dead letters (`check_policies`); InfrastructureError
    if no broker answers or it refuses to create.
    """
    wanted = topic_settings(kafka, releases)
    require_broker(kafka)
    with Admin(kafka) as admin:
        present = admin.topics()
        if reads_events and kafka.topic not in present:
            raise no_such_topic(kafka, [kafka.topic], present)
        missing = {name: config for name, config in wanted.items() if name not in present}
        admin.create(missing)
        found = _described(admin, wanted, created=missing)
    check_policies(kafka, {topic.name: topic.config for topic in found}, releases)
    return found


def create_topics(kafka: KafkaSettings, *, releases: Sequence[str] = (), dry_run: bool = False) -> list[Topic]:
    """Like `ensure_topics`, for `spoor topics create`: existing topics are compared (`Topic.differs`), never refused or
    changed. With `dry_run` nothing is created. Raises InfrastructureError as `ensure_topics`."""
    wanted = topic_settings(kafka, releases)
    require_broker(kafka)
    with Admin(kafka) as admin:
        present = admin.topics()
        missing = {name: config for name, config in wanted.items() if name not in present}
        if not dry_run:
            admin.create(missing)
        there = [name for name in wanted if not (dry_run and name in missing)]
        topics = {topic.name: topic for topic in _described(admin, there, created=missing)}
    planned = {name: Topic(name, True, kafka.partitions, config=config) for name, config in missing.items()}
    return [_compared(kafka, (planned | topics)[name], config) for name, config in wanted.items()]


def delete_topic(kafka: KafkaSettings, topic: str) -> bool:
    """Returns whether the topic existed. Raises InfrastructureError if no broker answers or it refuses."""
    require_broker(kafka)
    with Admin(kafka) as admin:
        return admin.delete(topic)


def _described(admin: Admin, topics: Collection[str], *, created: Collection[str]) -> list[Topic]:
    described, configs = admin.described(topics) if topics else {}, admin.configs(topics)
    found = []
    for name in topics:
        partitions = described[name]["partitions"]
        copies = min((len(replicas) for each in partitions if (replicas := each.get("replica_nodes"))), default=None)
        found.append(Topic(name, name in created, len(partitions), copies, config=configs.get(name, {})))
    return found


def _compared(kafka: KafkaSettings, topic: Topic, config: Mapping[str, str]) -> Topic:
    """The topic with its differences from Spoor's configuration. A value that the broker does not report is no
    difference."""
    if topic.created:
        return topic
    found = {
        "partitions": (str(topic.partitions), str(kafka.partitions)),
        "replication factor": (str(topic.copies or ""), str(kafka.replication_factor)),
        **{name: (topic.config.get(name, ""), value) for name, value in config.items()},
    }
    differs = (f"{name} is {is_}, not {asked}" for name, (is_, asked) in found.items() if _less(name, is_, asked))
    return replace(topic, differs=tuple(differs))


def _less(name: str, found: str, wanted: str) -> bool:
    """Whether the value falls short of Spoor's. Larger sizes and times do not, nor does -1 (unlimited)."""
    if not found:
        return False
    if name in ("partitions", "replication factor", "max.message.bytes", "retention.ms", "min.compaction.lag.ms"):
        return found != "-1" and int(found) < int(wanted)
    return set(found.split(",")) != set(wanted.split(","))
