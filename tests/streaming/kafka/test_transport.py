"""What a rebalance drops is fetched again; full buffers hold up a fetch no longer than they are full; the consumer's
thread ends although aiokafka's own stop breaks off, and survives a commit of lost partitions."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import cast

import pytest
from aiokafka import AIOKafkaConsumer
from faust.types import TP, Message
from kafka import KafkaAdminClient

from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.streaming.app import StreamApp, build_app
from spoor.streaming.kafka.transport import ConsumerThread, FreshConsumer
from tests.conftest import DEADLINE_SECONDS
from tests.streaming.conftest import World, some_events
from tests.topics import topic_ends


async def _stop_while_a_fetch_waits_to_retry(address: str) -> bool:
    consumer = AIOKafkaConsumer(bootstrap_servers=address)
    await consumer.start()
    await asyncio.sleep(0)  # the fetcher's routine begins, and waits for an assignment
    waits = asyncio.create_task(asyncio.sleep(3600))  # as a fetch does between two tries
    consumer._fetcher._pending_tasks.add(waits)
    await asyncio.sleep(0)  # and this task begins
    thread = ConsumerThread.__new__(ConsumerThread)
    thread._consumer = consumer
    await thread.on_thread_stop()
    return waits.cancelled() and not consumer._client._conns


def test_a_fetch_that_waits_to_retry_does_not_break_the_stop(kafka: KafkaSettings):
    assert asyncio.run(_stop_while_a_fetch_waits_to_retry(kafka.address))


async def _commit_what_is_not_assigned(world: World) -> tuple[bool, bool]:
    app = build_app(world.settings)
    try:
        await app.processor.open()
        await app.start()
        lost = TP(world.settings.kafka.topic, 99)
        return await cast("FreshConsumer", app.consumer)._commit({lost: 1}), app.crashed
    finally:
        await app.stop()
        app.processor.close()


def test_a_commit_whose_partitions_a_rebalance_took_does_not_crash_the_stream(world: World):
    assert asyncio.run(_commit_what_is_not_assigned(world)) == (True, False)


@asynccontextmanager
async def handling_no_batch(world: World) -> AsyncIterator[StreamApp]:
    """A worker that has joined its group and fetches."""
    app = build_app(world.settings)
    try:
        await app.processor.open()
        await app.processor.writing.acquire()
        await app.start()
        yield app
    finally:
        app.conf.stream_wait_empty = False
        app.consumer.unacked.clear()
        await app.stop()
        app.processor.close()


async def _seek_with_nothing_committed(world: World, committed: dict[int, int]) -> dict[int, tuple[int, int]]:
    """Partition → where the next fetch begins, after a fetch of which nothing was handled, and after Faust's seek."""
    async with handling_no_batch(world) as app:
        consumer = cast("FreshConsumer", app.consumer)
        partitions = consumer.assignment()
        if committed:
            await consumer._commit({tp: committed[tp.partition] for tp in partitions})
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not all([await consumer.position(tp) for tp in partitions]):
            assert time.monotonic() < deadline, "not every partition was fetched"
            await asyncio.sleep(0.05)
        await consumer.pause(True)
        before = {tp: await consumer.position(tp) or 0 for tp in partitions}
        await consumer.perform_seek()
        return {tp.partition: (before[tp], await consumer.position(tp) or 0) for tp in partitions}


@pytest.mark.parametrize("committed", [{}, dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 1)], ids=str)
def test_what_was_fetched_and_dropped_is_fetched_again_where_nothing_was_committed_too(
    world: World, committed: dict[int, int]
):
    world.produce(some_events(60))
    found = asyncio.run(_seek_with_nothing_committed(world, committed))
    assert len(found) == 4
    for partition, (before, after) in found.items():
        assert before > 1 and after == committed.get(partition, 0)


@pytest.mark.parametrize("committed", [0, 1])
def test_a_partition_whose_retention_has_passed_what_is_committed_begins_at_its_earliest_record(
    world: World, committed: int
):
    """Faust would note every offset between as a gap, and write all of them into a list."""

    async def begins() -> dict[TP, tuple[int | None, int | None]]:
        async with handling_no_batch(world) as app:
            consumer = cast("FreshConsumer", app.consumer)
            await consumer.pause(True)
            await consumer._commit(dict.fromkeys(consumer.assignment(), committed))
            await consumer.perform_seek()
            return {tp: (consumer._read_offset[tp], await consumer.position(tp)) for tp in consumer.assignment()}

    world.produce(some_events(60))
    ends = topic_ends(world.settings.kafka, world.settings.kafka.topic)
    with closing(KafkaAdminClient(bootstrap_servers=world.settings.kafka.address)) as admin:
        admin.delete_records(ends)
    found = asyncio.run(begins())
    assert {tp.partition: begin for tp, begin in found.items()} == {
        tp.partition: (end, end) for tp, end in ends.items()
    }


async def _records_once_there_is_room(world: World) -> bool:
    """Whether a fetch that finds every buffer full goes on as soon as one has room, and not after an hour."""
    async with handling_no_batch(world) as app:
        consumer = cast("FreshConsumer", app.consumer)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while app.in_recovery or not consumer.flow_active:
            assert time.monotonic() < deadline, "the stream does not begin"
            await asyncio.sleep(0.05)
        await app._stop_fetcher()  # which would ask at the same time
        partitions = consumer.assignment()
        for tp in partitions:
            consumer.on_buffer_full(tp)
        waits = asyncio.create_task(consumer._wait_next_records(3600))
        await asyncio.sleep(0)  # it begins
        assert not waits.done()
        consumer.on_buffer_drop(min(partitions))
        return await asyncio.wait_for(waits, DEADLINE_SECONDS) == ({}, None)


def test_a_fetch_goes_on_as_soon_as_a_buffer_has_room(world: World):
    assert asyncio.run(_records_once_there_is_room(world))


def test_a_fetch_that_a_rebalance_has_stopped_waits_for_its_end(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """Faust answers a fetch that ends meanwhile with a move back to the committed offsets."""

    async def ends() -> bool:
        consumer = cast("FreshConsumer", build_app(settings).consumer)
        monkeypatch.setattr(consumer, "assignment", lambda: {TP("activity", 0)})  # and none is active: it is paused
        consumer.stop_flow()
        waits = asyncio.create_task(consumer._wait_next_records(0))
        for _ in range(10):
            await asyncio.sleep(0)
        ended = waits.done()
        waits.cancel()
        await asyncio.wait({waits})
        return ended

    assert not asyncio.run(ends())


async def _taken_by_the_agent(world: World, count: int) -> tuple[dict[int, list[int]], int]:
    """Partition → offsets in the order in which the agent got them; how many records Faust itself delivered."""
    app = build_app(world.settings)  # whose queue holds 2 x batch_events records
    taken: dict[int, list[int]] = defaultdict(list)
    went_fausts_way = 0
    finished = asyncio.Event()

    async def take(messages: Sequence[Message]) -> None:
        for message in messages:
            taken[message.partition].append(message.offset)
            message.ack(app.consumer)
        if sum(map(len, taken.values())) >= count:
            finished.set()

    app.processor.take = take
    deliver = app.consumer.callback

    async def delivered_by_faust(message: Message) -> None:
        nonlocal went_fausts_way
        went_fausts_way += 1
        await deliver(message)

    app.consumer.callback = delivered_by_faust
    try:
        await app.processor.open()
        await app.start()
        await asyncio.wait_for(finished.wait(), DEADLINE_SECONDS)
    finally:
        await app.stop()
        app.processor.close()
    return taken, went_fausts_way


@pytest.mark.parametrize("batch_events", [5, 1000])
def test_every_record_reaches_the_agent_once_and_in_order_however_full_its_queue_is(world: World, batch_events: int):
    world.settings = dataclasses.replace(
        world.settings, stream=dataclasses.replace(world.settings.stream, batch_events=batch_events)
    )
    world.produce(some_events(400))
    taken, went_fausts_way = asyncio.run(_taken_by_the_agent(world, 400))
    assert sum(map(len, taken.values())) == 400
    assert all(offsets == list(range(len(offsets))) for offsets in taken.values())
    assert (went_fausts_way > 0) == (batch_events == 5)
