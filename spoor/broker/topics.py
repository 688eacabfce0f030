"""What a topic of events has to be, and what to say of one that is not there: the same for stream, archive and the
command that makes topics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from spoor.base.errors import UsageError
from spoor.broker.settings import KafkaSettings


def check_activity_topic(kafka: KafkaSettings, config: Mapping[str, str]) -> None:
    """`config`: of the activity topic; a value that the broker did not tell is not judged. Raises UsageError where the
    topic would lose or misdate events."""
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
    """For topics that a command reads: it never makes them, as a name may be mistyped."""
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
