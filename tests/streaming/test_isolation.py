"""What producers commit, abort or leave open, as a worker and an archive of the same topic see it."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from kafka import KafkaProducer

from spoor.activity.events import Event, encode_event
from spoor.batch.kafka.archive import open_lake, run_archive
from spoor.broker.settings import IsolationLevel
from tests.conftest import free_port, wait_until
from tests.streaming.conftest import World, metric, page, some_events

COMMITTED, ABORTED, OPEN, LATER = (some_events(40, users=8, seed=seed) for seed in range(4))


def archived(world: World) -> list[Event]:
    """What the lake holds after another archive."""
    run_archive(world.settings)
    lake = open_lake(world.settings.lake).read().select(Event._fields)
    return sorted(Event(*row) for row in zip(*(column.to_pylist() for column in lake.columns), strict=True))


@contextmanager
def transactions(world: World) -> Iterator[KafkaProducer]:
    topic = world.settings.kafka.topic
    options = {"transactional_id": topic, "transaction_timeout_ms": 600_000}
    with KafkaProducer(**world.settings.kafka.client_options() | options) as producer:
        producer.init_transactions()
        yield producer


def begin(producer: KafkaProducer, world: World, events: Iterable[Event]) -> None:
    """A transaction with these events, flushed and open."""
    producer.begin_transaction()
    for event in events:
        producer.send(world.settings.kafka.topic, key=event.user_id.encode(), value=encode_event(event))
    producer.flush(timeout=60)


@pytest.mark.parametrize("level", ["read_committed", "read_uncommitted"])
def test_worker_and_archive_see_the_same_events(world: World, level: IsolationLevel):
    world.settings = dataclasses.replace(
        world.settings, kafka=dataclasses.replace(world.settings.kafka, isolation_level=level)
    )
    port = free_port()

    def nothing_waits() -> bool:
        return metric(port, "spoor_stream_lag_records") == 0

    def assert_seen(events: Sequence[Event]) -> None:
        wait_until(lambda: metric(port, "spoor_stream_events_total") == len(events), "the worker has written them")
        wait_until(nothing_waits, "neither markers nor aborted nor open transactions count as waiting")
        assert page(port, "/healthz") == (200, "ok\n")
        world.assert_holds(events)
        assert archived(world) == sorted(events)

    with transactions(world) as producer:
        begin(producer, world, COMMITTED)
        producer.commit_transaction()
        begin(producer, world, ABORTED)
        producer.abort_transaction()
        begin(producer, world, OPEN)
        world.produce(LATER)  # outside the transaction, behind its first records
        worker = world.start_worker(
            SPOOR_KAFKA__ISOLATION_LEVEL=level, SPOOR_STREAM__METRICS_PORT=str(port), SPOOR_STREAM__STALL_SECONDS="5"
        )
        if level == "read_uncommitted":
            assert_seen([*COMMITTED, *ABORTED, *OPEN, *LATER])
            producer.abort_transaction()
        else:
            assert_seen(COMMITTED)
            producer.commit_transaction()
            assert_seen([*COMMITTED, *OPEN, *LATER])
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.log
