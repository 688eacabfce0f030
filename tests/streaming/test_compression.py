"""Producers of a company compress as they like: worker, archive and dead letters read every codec, and name the one
that is not installed."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from spoor.activity.events import Event, encode_event
from spoor.base.errors import InfrastructureError
from spoor.batch.kafka.archive import open_lake, run_archive
from spoor.streaming.orders.replay import list_dead_letters
from spoor.streaming.worker import run_worker
from tests.streaming.conftest import ROOT, World, some_events

CODECS = ["gzip", "lz4", "snappy", "zstd"]


def produce(world: World, topic: str, events: list[Event], codec: str | None) -> None:
    options = {"compression_type": codec, "linger_ms": 50} if codec else {}
    with KafkaProducer(**world.settings.kafka.client_options(), **options) as producer:
        for event in events:
            producer.send(topic, key=event.user_id.encode(), value=encode_event(event))
        producer.flush()


@pytest.mark.parametrize("codec", CODECS)
def test_worker_and_archive_read_what_a_producer_and_what_the_broker_has_compressed(world: World, codec: str):
    topic = f"{world.settings.kafka.topic}-{codec}"
    configs = {"message.timestamp.type": "LogAppendTime", "compression.type": codec}
    with KafkaAdminClient(**world.settings.kafka.client_options()) as admin:
        admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1, topic_configs=configs)])
    world.settings = dataclasses.replace(world.settings, kafka=dataclasses.replace(world.settings.kafka, topic=topic))
    ours, theirs = some_events(60, seed=1), some_events(60, seed=2)
    produce(world, topic, ours, codec)  # by kafka-python
    produce(world, topic, theirs, None)  # by the broker
    events = ours + theirs
    run_worker(world.settings, count=len(events), timeout_seconds=120)
    world.assert_holds(events)
    assert run_archive(world.settings).events == len(events)
    assert len(open_lake(world.settings.lake).read()) == len(events)


def test_a_worker_that_lacks_a_codec_says_which(world: World, tmp_path: Path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "cramjam.py").write_text("raise ImportError('not installed')")
    produce(world, world.settings.kafka.topic, some_events(20), "snappy")
    worker = world.start_worker(forked=False, PYTHONPATH=os.pathsep.join([str(tmp_path / "without"), str(ROOT)]))
    assert worker.ended() == 3
    assert "compressed with snappy, and its codec `cramjam` is not installed" in worker.log
    assert "hint: pip install cramjam" in worker.log
    assert not any(world.committed().values())


def test_archive_and_dead_letters_name_a_missing_codec(world: World, monkeypatch: pytest.MonkeyPatch):
    produce(world, world.settings.kafka.topic, some_events(20), "snappy")
    produce(world, world.settings.kafka.dead_letter_topic, some_events(20), "snappy")
    monkeypatch.setattr("kafka.codec.snappy", None)
    for command in (run_archive, list_dead_letters):
        with pytest.raises(InfrastructureError, match="compressed with snappy") as caught:
            command(world.settings)
        assert "pip install python-snappy" in caught.value.hint
