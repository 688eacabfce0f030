"""Records that retention deletes while their partition stays assigned: counted, named in the log, and passed over."""

from __future__ import annotations

import re
import signal
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from spoor.operations.orders import pause, resume
from tests.conftest import free_port, wait_until
from tests.streaming.conftest import Worker, World, metric, page, some_events
from tests.topics import topic_ends

LOST = "spoor_stream_lost_events_total"


def delete(world: World, offsets: Mapping[TopicPartition, int]) -> None:
    """What retention does: the log begins at these offsets."""
    with KafkaAdminClient(**world.settings.kafka.client_options()) as admin:
        admin.delete_records(dict(offsets))


def lost_ranges(worker: Worker) -> dict[int, int]:
    """Partition → how many offsets the worker's log says were lost."""
    found = re.findall(r"deleted (\d+) unread events: \S+ partition (\d+)", worker.log)
    assert len({partition for _, partition in found}) == len(found)
    return {int(partition): int(count) for count, partition in found}


def by_order(world: World, worker: Worker) -> Callable[[], None]:
    pause(world.settings, timeout_seconds=60)
    return lambda: resume(world.settings, timeout_seconds=60) and None


def by_freezing(world: World, worker: Worker) -> Callable[[], None]:
    """For less than its session, so that its partitions stay."""
    worker.process.send_signal(signal.SIGSTOP)
    return lambda: worker.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("stop", [by_order, by_freezing])
def test_a_worker_counts_what_retention_deleted_before_its_next_fetch(
    world: World, stop: Callable[[World, Worker], Callable[[], None]]
):
    port = free_port()
    first, second, third = (some_events(80, users=30, seed=seed) for seed in range(3))
    world.produce(first)
    worker = world.start_worker(SPOOR_STREAM__METRICS_PORT=str(port), SPOOR_KAFKA__SESSION_TIMEOUT_SECONDS="30")
    wait_until(lambda: metric(port, "spoor_stream_events_total") == 80 and world.caught_up(), "the first events")
    before = topic_ends(world.settings.kafka, world.settings.kafka.topic)
    go_on = stop(world, worker)
    world.produce(second)
    ends = topic_ends(world.settings.kafka, world.settings.kafka.topic)
    part = {tp: before[tp] + (end - before[tp]) // 2 for tp, end in ends.items() if end - before[tp] > 1}
    whole = min(part)  # of one partition everything that came is deleted
    part[whole] = ends[whole]
    lost = {tp.partition: offset - before[tp] for tp, offset in part.items()}
    delete(world, part)
    go_on()
    wait_until(lambda: metric(port, LOST) == sum(lost.values()), "what was lost is counted")
    assert lost_ranges(worker) == lost
    wait_until(world.caught_up, "offsets behind what was lost are committed")
    wait_until(lambda: metric(port, "spoor_stream_lag_records") == 0, "nothing waits")
    world.produce(third)
    handled = 80 + sum(ends.values()) - sum(before.values()) - sum(lost.values()) + 80
    wait_until(lambda: metric(port, "spoor_stream_events_total") == handled, "what is left and what follows")
    assert page(port, "/healthz") == (200, "ok\n")
    wait_until(world.caught_up, "everything is committed")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert worker.summary["lost_events"] == sum(lost.values())


def test_what_a_crash_takes_of_records_that_retention_has_passed_is_told_by_the_next_worker(world: World):
    """Taken, not yet in the store, and deleted in Kafka: the group's offset stays before them."""
    ports = free_port(), free_port()
    first, second, third = (some_events(40, users=20, seed=seed) for seed in range(3))
    world.produce(first)
    environment = {"SPOOR_KAFKA__SESSION_TIMEOUT_SECONDS": "30", "SPOOR_STREAM__STALL_SECONDS": "300"}
    worker = world.start_worker(SPOOR_STREAM__METRICS_PORT=str(ports[0]), **environment)
    wait_until(lambda: metric(ports[0], "spoor_stream_decoded_events_total") == 40 and world.caught_up(), "the first")
    before = topic_ends(world.settings.kafka, world.settings.kafka.topic)
    with closing(sqlite3.connect(world.settings.state_folder / "online.db")) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        world.produce(second)
        wait_until(lambda: metric(ports[0], "spoor_stream_decoded_events_total") == 80, "the second are taken")
        worker.process.send_signal(signal.SIGSTOP)
        world.produce(third)
        ends = topic_ends(world.settings.kafka, world.settings.kafka.topic)
        delete(world, ends)
        worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: metric(ports[0], LOST) == len(third), "the third are counted")
        wait_until(lambda: metric(ports[0], "spoor_stream_lag_records") == 0, "nothing waits in Kafka")
        worker.process.kill()
        worker.process.wait()
    assert {tp: offset for tp, offset in world.committed().items() if tp in before} == before
    world.start_worker(SPOOR_STREAM__METRICS_PORT=str(ports[1]))
    wait_until(lambda: metric(ports[1], LOST) == len(second) + len(third), "what the crash took is counted")


def test_offsets_that_no_record_has_are_not_counted(world: World):
    """Markers and records of aborted transactions leave gaps within the log."""
    port = free_port()
    options = {"transactional_id": world.settings.kafka.topic}
    events = some_events(30)
    with KafkaProducer(**world.settings.kafka.client_options(), **options) as producer:
        producer.init_transactions()
        for end in (producer.abort_transaction, producer.commit_transaction) * 2:
            producer.begin_transaction()
            for event in events:
                producer.send(world.settings.kafka.topic, key=event.user_id.encode(), value=b"aborted or no event")
            producer.flush(timeout=60)
            end()
    worker = world.start_worker(SPOOR_STREAM__METRICS_PORT=str(port))
    wait_until(lambda: metric(port, "spoor_stream_dead_letters_total") == 60, "what was committed is handled")
    wait_until(lambda: metric(port, "spoor_stream_lag_records") == 0, "nothing waits")
    assert metric(port, LOST) == 0 and "unread" not in worker.log


def test_a_partition_that_ends_before_the_group_s_offset_is_read_from_its_beginning(world: World):
    """Truncated, or made again: none of its records may be taken for read."""
    events = some_events(80)
    world.produce(events)
    ends = topic_ends(world.settings.kafka, world.settings.kafka.topic)
    beyond = {tp: OffsetAndMetadata(end + 1000, "", -1) for tp, end in ends.items()}
    options = world.settings.kafka.consumer_options() | {"group_id": world.settings.stream.group}
    with closing(KafkaConsumer(**options)) as consumer:
        consumer.assign(list(beyond))
        consumer.commit(beyond)
    worker = world.start_worker(count=len(events))
    assert worker.ended() == 0, worker.log[-3000:]
    assert "ends before offset" in worker.log
    world.assert_holds(events)
    assert world.caught_up() and worker.summary["lost_events"] == 0
    assert {tp: offset for tp, offset in world.committed().items() if tp in ends} == ends
