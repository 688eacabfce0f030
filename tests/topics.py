"""What lies on a topic of a genuine broker."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from spoor.broker.settings import KafkaSettings
from tests.conftest import DEADLINE_SECONDS


def topic_ends(kafka: KafkaSettings, topic: str) -> dict[TopicPartition, int]:
    """The offset after the last record of each partition."""
    with closing(KafkaConsumer(**kafka.client_options())) as consumer:
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        return consumer.end_offsets(partitions)


def topic_records(kafka: KafkaSettings, topic: str) -> list[Any]:
    """Every record up to the present end, partition by partition in offset order."""
    with closing(KafkaConsumer(auto_offset_reset="earliest", **kafka.client_options())) as consumer:
        ends = {tp: end for tp, end in topic_ends(kafka, topic).items() if end}
        consumer.assign(list(ends))
        found: list[Any] = []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any(consumer.position(tp) < end for tp, end in ends.items()):
            assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:.0f} s: the records of {topic}"
            for records in consumer.poll(timeout_ms=200).values():
                found += records
        return found
