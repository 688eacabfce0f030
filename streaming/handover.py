"""Batch bootstraps the stream: a group's first start at the offsets up to which a backfill has read the lake.

A group that has committed nothing yet may begin there instead of reading the whole topic again; reading it again would
end the same, only later. The lake keeps no bad records, so a partition begins at the first range that had any: the
stream makes dead letters of them.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from activity.errors import UsageError
from activity.lake import Lake
from streaming.broker import kafka_errors
from streaming.settings import WorkerSettings


def start_after_backfill(settings: WorkerSettings, lake: Lake) -> dict[int, int]:
    """Commits, for partitions without a committed offset, up to where the last backfill read the lake, or where the
    first range with bad records begins. Returns these offsets by partition.

    Raises UsageError where there was no backfill, the lake has another topic or the group is at work,
    InfrastructureError without a broker."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import CommitFailedError
    from kafka.structs import OffsetAndMetadata

    group, topic = settings.stream.group, settings.kafka.topic
    begins = _begins(lake, topic)
    with kafka_errors(settings.kafka):
        options: dict[str, Any] = settings.kafka.consumer_options() | {"group_id": group}
        options["bootstrap_timeout_ms"] = int(settings.kafka.request_timeout_seconds * 1000)
        with closing(KafkaConsumer(**options)) as consumer:
            partitions = [TopicPartition(topic, partition) for partition in sorted(begins)]
            consumer.assign(partitions)
            fresh = {tp: begins[tp.partition] for tp in partitions if consumer.committed(tp) is None}
            if fresh:
                try:
                    consumer.commit(
                        {tp: OffsetAndMetadata(offset, "from the lake", -1) for tp, offset in fresh.items()}
                    )
                except CommitFailedError:
                    raise UsageError(
                        f"group `{group}` has workers already, and nothing is committed yet",
                        hint="start without --from-lake, or stop the group's workers first",
                    ) from None
    return {tp.partition: offset for tp, offset in fresh.items()}


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
