"""Batch bootstraps the stream: a group's first start at the offsets where the lake ends.

A backfill has written everything that the lake holds. A group that has committed nothing yet may then begin behind it
instead of reading the whole topic again; reading it again would end the same, only later.
"""

from __future__ import annotations

from contextlib import closing

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from activity.errors import UsageError
from activity.lake import Lake
from streaming.broker import no_broker
from streaming.settings import WorkerSettings


def start_where_lake_ends(settings: WorkerSettings, lake: Lake) -> dict[int, int]:
    """Commits, for partitions without a committed offset, where the lake's first unbroken range ends. Returns these
    offsets by partition. Raises UsageError while the lake has nothing, InfrastructureError without a broker."""
    topic = settings.kafka.topic
    ends = {partition: lake.covered(partition)[0][1] for partition in lake.partitions()}
    if not ends:
        raise UsageError(f"the lake `{lake.folder}` is empty", hint="run `spoor archive` and `spoor backfill` first")
    try:
        with closing(
            KafkaConsumer(group_id=settings.stream.group, enable_auto_commit=False, **settings.kafka.client_options())
        ) as consumer:
            partitions = [TopicPartition(topic, partition) for partition in sorted(ends)]
            consumer.assign(partitions)
            fresh = {tp: ends[tp.partition] for tp in partitions if consumer.committed(tp) is None}
            if fresh:
                consumer.commit(
                    {tp: OffsetAndMetadata(offset, "where the lake ends", -1) for tp, offset in fresh.items()}
                )
    except KafkaError as error:
        raise no_broker(settings.kafka, error) from error
    return {tp.partition: offset for tp, offset in fresh.items()}
