"""Where a group begins, when it is not where it stopped. Both ways are for a group without workers.

After a backfill, a group that has committed nothing yet may begin at the offsets up to which the lake was read, instead
of reading the whole topic again; reading it again would end the same, only later. The lake keeps no bad records, so a
partition begins at the first range that had any: the stream makes dead letters of them.

After a store lost its latest writes, a group goes back to where it stood before (`rewind`). Histories merge, so what
the store still has is merged again without effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from spoor.activity.lake import Lake
from spoor.base.errors import UsageError
from spoor.base.numbers import number_text
from spoor.streaming.kafka.broker import kafka_errors
from spoor.streaming.settings import WorkerSettings

if TYPE_CHECKING:
    from kafka import KafkaConsumer
    from kafka.structs import TopicPartition


def start_after_backfill(settings: WorkerSettings, lake: Lake) -> dict[int, int]:
    """Commits, for partitions without a committed offset, up to where the last backfill read the lake, or where the
    first range with bad records begins. Returns these offsets by partition.

    Raises UsageError where there was no backfill, the lake has another topic or the group is at work,
    InfrastructureError without a broker."""
    from kafka.structs import TopicPartition

    topic = settings.kafka.topic
    begins = _begins(lake, topic)
    with _group(settings) as consumer:
        partitions = [TopicPartition(topic, partition) for partition in sorted(begins)]
        consumer.assign(partitions)
        fresh = {tp: begins[tp.partition] for tp in partitions if consumer.committed(tp) is None}
        _commit(settings, consumer, fresh, why="from the lake", option="--from-lake")
    return {tp.partition: offset for tp, offset in fresh.items()}


def rewind(settings: WorkerSettings, *, to_ms: int, dry_run: bool = False) -> dict[int, tuple[int, int]]:
    """Moves the group's committed offsets back to the first records appended at or after `to_ms`, never forward.
    Returns (committed before, committed now) of the partitions that moved; with `dry_run` nothing is committed.

    A partition without a committed offset begins at its earliest record anyway. Raises UsageError while the group has
    workers, InfrastructureError without a broker."""
    from kafka.structs import TopicPartition

    topic = settings.kafka.topic
    with _group(settings) as consumer:
        partitions = [
            TopicPartition(topic, partition) for partition in sorted(consumer.partitions_for_topic(topic) or ())
        ]
        consumer.assign(partitions)
        found = consumer.offsets_for_times(dict.fromkeys(partitions, to_ms)) if partitions else {}
        moved: dict[TopicPartition, tuple[int, int]] = {}
        for tp in partitions:
            committed, then = consumer.committed(tp), found[tp]
            if committed is not None and then is not None and then.offset < committed:
                moved[tp] = committed, then.offset
        if not dry_run:
            begins = {tp: offset for tp, (_, offset) in moved.items()}
            _commit(settings, consumer, begins, why="rewound", option="--rewind")
    return {tp.partition: offsets for tp, offsets in moved.items()}


@contextmanager
def _group(settings: WorkerSettings) -> Iterator[KafkaConsumer]:
    """A consumer that speaks for the group without joining it."""
    from kafka import KafkaConsumer

    with kafka_errors(settings.kafka):
        options: dict[str, Any] = settings.kafka.consumer_options() | {"group_id": settings.stream.group}
        options["bootstrap_timeout_ms"] = int(settings.kafka.request_timeout_seconds * 1000)
        with closing(KafkaConsumer(**options)) as consumer:
            yield consumer


def _commit(
    settings: WorkerSettings, consumer: KafkaConsumer, offsets: Mapping[TopicPartition, int], *, why: str, option: str
) -> None:
    """The broker takes it from a consumer that is no member only while the group has none."""
    from kafka.errors import CommitFailedError
    from kafka.structs import OffsetAndMetadata

    if not offsets:
        return
    try:
        consumer.commit({tp: OffsetAndMetadata(offset, why, -1) for tp, offset in offsets.items()})
    except CommitFailedError:
        raise UsageError(
            f"group `{settings.stream.group}` has workers: its offsets are theirs",
            hint=f"start without {option}, or stop the group's workers first; one that was killed is a member for "
            f"{number_text(settings.kafka.session_timeout_seconds)} s more",
        ) from None


def _begins(lake: Lake, topic: str) -> dict[int, int]:
    """The first offset by partition that the stream has to read."""
    entries = list(lake.ranges().values())
    begins = lake.backfilled()
    if not begins:
        raise UsageError(
            f"no backfill has read the lake `{lake.folder}`", hint="run `spoor archive` and `spoor backfill` first"
        )
    if others := {entry["topic"] for entry in entries} - {topic}:
        raise UsageError(
            f"the lake `{lake.folder}` holds topic `{others.pop()}`, not `{topic}`",
            hint="set kafka.topic back, or lake.folder to the lake of this topic",
        )
    for entry in entries:
        if entry.get("bad") and entry["partition"] in begins:
            begins[entry["partition"]] = min(begins[entry["partition"]], entry["start"])
    return begins
