"""The rules for Spoor's topics: their configuration, which existing ones are refused, and the error for a missing one.

The activity topic uses the broker's append time: with event times, retention would delete a replay's old events within
minutes. It is never compacted. Dead letters are compacted by origin, so none is lost. Embedding topics are compacted by
user: the last row of each user stays, and earlier rows until they can be archived.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from spoor.base.errors import UsageError
from spoor.broker.settings import KafkaSettings

DEFAULT_RECORD_BYTES = 1_048_588  # Kafka's default of max.message.bytes
ENVELOPE_BYTES = 4096  # maximum of the JSON around a dead letter's original bytes
LEAST_LETTER_BYTES = 2 * ENVELOPE_BYTES  # the dead-letter topic must accept this size: any reference to a record fits
HOUR_MS = 3_600_000


def topic_settings(kafka: KafkaSettings, releases: Sequence[str]) -> dict[str, dict[str, str]]:
    """Topic → its configuration at creation."""
    activity = {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": str(kafka.retention_hours * HOUR_MS),
    }
    letters = {"cleanup.policy": "compact", "max.message.bytes": str(dead_letter_bytes(DEFAULT_RECORD_BYTES))}
    embeddings = {kafka.embedding_topic(release): kafka.embedding_topic_config for release in releases}
    return {kafka.topic: activity, kafka.dead_letter_topic: letters, **embeddings}


def dead_letter_bytes(record_bytes: int) -> int:
    """The maximum size of a plain dead letter for a record of up to `record_bytes`: base64 and the envelope."""
    return (record_bytes + 2) // 3 * 4 + ENVELOPE_BYTES


def check_policies(kafka: KafkaSettings, configs: Mapping[str, Mapping[str, str]], releases: Sequence[str]) -> None:
    """`configs`: topic → configuration. A value that the broker does not report passes. Raises UsageError."""
    check_activity_topic(kafka, configs.get(kafka.topic, {}))
    for topic in map(kafka.embedding_topic, releases):
        policy = configs.get(topic, {}).get("cleanup.policy", "compact")
        if "compact" not in policy:
            raise UsageError(
                f"topic `{topic}` is not compacted (cleanup.policy={policy}): "
                "it would forget users instead of keeping their last row",
                hint=kafka.topic_change(topic, "cleanup.policy=compact"),
            )
    letters = configs.get(kafka.dead_letter_topic, {})
    if int(letters.get("max.message.bytes", DEFAULT_RECORD_BYTES)) < LEAST_LETTER_BYTES:
        wanted = dead_letter_bytes(DEFAULT_RECORD_BYTES)
        raise UsageError(
            f"topic `{kafka.dead_letter_topic}` takes records of {letters['max.message.bytes']} bytes: "
            f"a dead letter, even one that only refers to its record, has up to {LEAST_LETTER_BYTES}",
            hint=kafka.topic_change(kafka.dead_letter_topic, f"max.message.bytes={wanted}"),
        )


def check_activity_topic(kafka: KafkaSettings, config: Mapping[str, str]) -> None:
    """`config`: of the activity topic; a value that the broker does not report passes. Raises UsageError if the topic
    would lose or misdate events."""
    policy = config.get("cleanup.policy", "delete")
    if "compact" in policy:
        raise UsageError(
            f"topic `{kafka.topic}` is compacted (cleanup.policy={policy}): Kafka would keep one event per user",
            hint=f"{kafka.topic_change(kafka.topic, 'cleanup.policy=delete')}, or set kafka.topic to another topic",
        )
    found = config.get("message.timestamp.type", "LogAppendTime")
    if found != "LogAppendTime":
        raise UsageError(
            f"topic `{kafka.topic}` has message.timestamp.type={found}, expected LogAppendTime: with the producer's "
            "time, retention deletes replayed events at once",
            hint=f"{kafka.topic_change(kafka.topic, 'message.timestamp.type=LogAppendTime')}, or set kafka.topic to "
            "another topic",
        )


def no_such_topic(kafka: KafkaSettings, missing: Sequence[str], present: Collection[str]) -> UsageError:
    """The error for missing topics that a command reads. It never creates them, as a name may be mistyped."""
    names = ", ".join(f"`{topic}`" for topic in missing)
    known = [topic for topic in present if not topic.startswith("__")]
    near = [match for topic in missing for match in get_close_matches(topic, known, n=3, cutoff=0.7)]
    settings = sorted({_setting(kafka, topic) for topic in missing})
    meant = f"did you mean {' or '.join(f'`{name}`' for name in dict.fromkeys(near))}? " if near else ""
    return UsageError(
        f"no topic {names} at {kafka.address}",
        hint=f"{meant}`spoor topics create` makes the topics of the settings; or correct {', '.join(settings)}",
    )


def _setting(kafka: KafkaSettings, topic: str) -> str:
    if topic == kafka.topic:
        return "kafka.topic"
    return "kafka.dead_letter_topic" if topic == kafka.dead_letter_topic else "kafka.embedding_topic_prefix"
