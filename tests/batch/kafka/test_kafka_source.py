from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.batch.kafka.kafka_source import RangeReader, check_retained, gaps, plan_ranges
from spoor.broker.reader import KafkaRange
from spoor.config import Settings


def test_a_partition_that_nothing_covers_is_one_gap() -> None:
    assert gaps([], begin=3, high=10) == [(3, 10)]


def test_an_empty_partition_has_no_gap() -> None:
    assert gaps([], begin=0, high=0) == []


def test_gaps_lie_between_covered_ranges_and_after_them() -> None:
    assert gaps([(0, 4), (6, 8)], begin=0, high=11) == [(4, 6), (8, 11)]


@given(
    cuts=st.lists(st.integers(0, 60), unique=True, max_size=12).map(sorted),
    begin=st.integers(0, 20),
    high=st.integers(0, 60),
)
def test_covered_and_gaps_together_are_every_offset_once(cuts: list[int], begin: int, high: int) -> None:
    covered = [pair for index, pair in enumerate(pairwise(cuts)) if index % 2 == 0]
    held = {offset for start, end in covered for offset in range(start, end)}
    found = [offset for start, end in gaps(covered, begin=begin, high=high) for offset in range(start, end)]
    assert found == [offset for offset in range(begin, high) if offset not in held]


def test_plan_cuts_gaps_into_items_oldest_first() -> None:
    items = plan_ranges("t", {0: (0, 10), 1: (0, 3)}, {1: [(0, 3)], 0: [(2, 4), (5, 10)]}, range_records=3)
    spans = [(item.partition, item.start, item.end) for item in items]
    assert spans == [(0, 2, 4), (0, 5, 8), (0, 8, 10), (1, 0, 3)]


def test_plan_refuses_a_range_that_retention_has_eaten_and_names_both_offsets() -> None:
    with pytest.raises(DataError, match=r"offset 5 is needed next, but retention .* below 8") as caught:
        plan_ranges("t", {0: (8, 20)}, {0: [(5, 20)]}, range_records=100)
    assert "--accept-loss" in caught.value.hint


def test_a_range_beyond_the_end_is_refused() -> None:
    with pytest.raises(DataError, match=r"up to 7 are expected, but the partition ends at 5"):
        check_retained(KafkaRange("t", 0, 2, 7), low=0, high=5)


def _offsets(reader: RangeReader, item: KafkaRange) -> list[int]:
    return [record.offset for records in reader.read(item) for record in records]


def test_reader_gives_exactly_the_range(kafka_settings: Settings, produce: Callable[..., None]) -> None:
    produce([f"{number}".encode() for number in range(25)], 1)
    with RangeReader(kafka_settings.kafka) as reader:
        topic = kafka_settings.kafka.topic
        assert reader.watermarks(topic) == {0: (0, 0), 1: (0, 25)}
        records = [r for part in reader.read(KafkaRange(topic, 1, 7, 19)) for r in part]
        assert [record.value for record in records] == [f"{number}".encode() for number in range(7, 19)]
        assert _offsets(reader, KafkaRange(topic, 1, 0, 1)) == [0]
        assert _offsets(reader, KafkaRange(topic, 1, 24, 25)) == [24]


def test_reader_passes_transaction_markers_and_aborted_records(kafka_settings: Settings, activity_topic: str) -> None:
    producer = KafkaProducer(**kafka_settings.kafka.client_options(), transactional_id=activity_topic)
    producer.init_transactions()
    for commit in (True, False, True, False):
        producer.begin_transaction()
        for _ in range(3):
            producer.send(activity_topic, value=b"x", partition=0)
        producer.flush(timeout=30)
        if commit:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    producer.close()
    with RangeReader(kafka_settings.kafka) as reader:
        low, high = reader.watermarks(activity_topic)[0]
        assert (low, high) == (0, 16)  # 4 × (3 records and a marker)
        assert _offsets(reader, KafkaRange(activity_topic, 0, 0, 16)) == [0, 1, 2, 8, 9, 10]
        assert _offsets(reader, KafkaRange(activity_topic, 0, 11, 16)) == []


def test_reader_refuses_what_retention_has_eaten(
    kafka_settings: Settings, produce: Callable[..., None], admin: KafkaAdminClient
) -> None:
    produce([b"x"] * 10, 0)
    topic = kafka_settings.kafka.topic
    admin.delete_records({TopicPartition(topic, 0): 6})
    with RangeReader(kafka_settings.kafka) as reader:
        with pytest.raises(DataError, match=r"offset 2 is needed next, .* below 6 \(4 records are lost\)"):
            _offsets(reader, KafkaRange(topic, 0, 2, 10))
        assert _offsets(reader, KafkaRange(topic, 0, 6, 10)) == [6, 7, 8, 9]


def test_an_unknown_topic_is_a_usage_error(kafka_settings: Settings) -> None:
    with (
        RangeReader(kafka_settings.kafka) as reader,
        pytest.raises(UsageError, match="no topic `nowhere`"),
    ):
        reader.watermarks("nowhere")


def test_a_broker_that_is_down_is_an_infrastructure_error(settings: Settings) -> None:
    kafka = dataclasses.replace(settings.kafka, request_timeout_seconds=0.5)
    with pytest.raises(InfrastructureError, match=re.escape(kafka.address)) as caught:
        RangeReader(kafka)
    assert "spoor services up" in caught.value.hint
