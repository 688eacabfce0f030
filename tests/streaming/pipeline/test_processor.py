"""Batches on their way through the processor: several at once, in their order, and what a failure or a stop leaves."""

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faust.types import Message

from spoor.activity.events import encode_event
from spoor.activity.settings import EventSettings
from spoor.base.errors import InfrastructureError
from spoor.config import Settings
from spoor.store.publication import Rows
from spoor.streaming.pipeline.stores import Stores
from spoor.streaming.records.core import DecodedBatch, decode_batch
from spoor.streaming.worker import run_worker
from tests.conftest import DEADLINE_SECONDS
from tests.streaming.conftest import World, some_events
from tests.streaming.memory import MemorySource, MemoryStores, processor_in_memory, record


def in_small_batches(world: World) -> Settings:
    stream = dataclasses.replace(world.settings.stream, batch_events=20, retries=1)
    return dataclasses.replace(world.settings, stream=stream)


def batches_as_written(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Gets the users of each batch once it is written."""
    update, written = Stores.update, list[list[str]]()

    def update_and_tell(self: Stores, batch: Any, **options: Any) -> Any:
        result = update(self, batch, **options)
        written.append(batch.user_ids)
        return result

    patch.setattr(Stores, "update", update_and_tell)
    return written


def test_while_a_batch_is_published_the_next_is_written(world: World, monkeypatch: pytest.MonkeyPatch):
    events = some_events(100)
    world.produce(events)
    publish, written = Stores.publish, batches_as_written(monkeypatch)
    seen: list[int] = []

    async def publish_after_the_next(self: Stores, rows: Rows) -> int:
        place = len(seen)
        seen.append(place)
        while place < 2 and len(written) < place + 2:  # the third batch is written, and not yet published
            await asyncio.sleep(0.01)
        return await publish(self, rows)

    monkeypatch.setattr(Stores, "publish", publish_after_the_next)
    run_worker(in_small_batches(world), count=len(events), timeout_seconds=120)
    assert len(seen) >= 3
    world.assert_holds(events)
    assert world.caught_up()


def test_what_follows_a_batch_that_failed_is_not_committed(world: World, monkeypatch: pytest.MonkeyPatch):
    """Faust would commit the offset after it, and so what was never handled."""
    events = some_events(100)
    world.produce(events)
    publish, settings = Stores.publish, in_small_batches(world)

    async def fail_once_the_next_is_written(self: Stores, rows: Rows) -> int:
        if len(written) == 1:
            while len(written) < 2:
                await asyncio.sleep(0.01)
            raise InfrastructureError("the first batch is not published")
        return await publish(self, rows)

    with monkeypatch.context() as patch:
        written = batches_as_written(patch)
        patch.setattr(Stores, "publish", fail_once_the_next_is_written)
        with pytest.raises(InfrastructureError, match="the first batch is not published"):
            run_worker(settings, timeout_seconds=120)
    assert len(written) >= 2
    assert sum(world.committed().values()) == 0
    run_worker(settings, count=len(events), timeout_seconds=120)
    world.assert_holds(events)


EVENT = encode_event(some_events(1)[0])


@pytest.mark.parametrize("fails", [False, True])
def test_a_batch_without_events_is_not_acknowledged_before_one_that_is_still_written(settings: Settings, fails: bool):
    """A bad record right behind an event: Faust would commit the offset after both."""
    at_store = threading.Event()

    def hangs(users: list[str]) -> None:
        assert at_store.wait(DEADLINE_SECONDS)
        if fails:
            raise InfrastructureError("the store is gone")

    async def run() -> list[int]:
        await source.records(processor, [record(EVENT, offset=0)], [record(b"not json", offset=1)])
        while not stores.letters.letters:  # then what follows it in its task runs, up to where it waits
            await asyncio.sleep(0.01)
        for _ in range(100):
            await asyncio.sleep(0)
        before = list(source.acknowledged)
        at_store.set()
        await source.end(processor)
        return before

    once = dataclasses.replace(settings, stream=dataclasses.replace(settings.stream, retries=1))
    source, stores = MemorySource(), MemoryStores(updates=hangs)
    processor = processor_in_memory(once, source, stores)
    assert asyncio.run(run()) == []
    assert source.acknowledged == ([] if fails else [0, 1])
    processor.close()


def test_records_that_were_taken_before_a_rebalance_are_left_to_their_new_owner(settings: Settings):
    source, stores = MemorySource(), MemoryStores()
    processor = processor_in_memory(settings, source, stores)

    async def run() -> None:
        source.abort()
        await source.records(processor, [record(EVENT, offset=0), record(EVENT, offset=1, generation=1)])
        await source.end(processor)

    asyncio.run(run())
    assert source.acknowledged == [1] and processor.metrics.skipped.total == 1
    processor.close()


def test_decoding_takes_no_thread_of_the_loop_and_keeps_no_process(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """A registry that hangs would hold the threads in which names of hosts are looked up, and Python waits for them."""
    source, stores = MemorySource(), MemoryStores()
    processor = processor_in_memory(settings, source, stores)
    threads: list[threading.Thread] = []

    def decode(records: Sequence[Message], events: EventSettings) -> DecodedBatch:
        threads.append(threading.current_thread())
        return decode_batch(records, events)

    monkeypatch.setattr("spoor.streaming.pipeline.processor.decode_batch", decode)

    async def run() -> None:
        taken = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, taken.wait)
        try:
            await source.records(processor, [record(EVENT)])
            await asyncio.wait_for(source.end(processor), 30)
        finally:
            taken.set()
            await busy

    asyncio.run(run())
    assert processor.metrics.decoded.total == 1
    assert [thread.daemon for thread in threads] == [True]
    processor.close()


@pytest.mark.parametrize("fails", [False, True])
def test_it_is_ready_for_another_batch_when_those_before_are_in_the_store(fails: bool, settings: Settings):
    at_store = threading.Event()

    def writes(users: list[str]) -> None:
        assert at_store.wait(DEADLINE_SECONDS)
        if fails:
            raise InfrastructureError("the store is gone")

    async def run() -> bool:
        at_topic = asyncio.Event()
        source = MemorySource(commits=at_topic.wait)
        processor = processor_in_memory(once, source, MemoryStores(updates=writes))
        await processor.ready()
        await source.records(processor, [record(EVENT)])
        ready = asyncio.ensure_future(processor.ready())
        await asyncio.wait({ready}, timeout=0.1)
        early = ready.done()
        at_store.set()
        await ready
        at_topic.set()
        await source.end(processor)
        processor.close()
        return early

    once = dataclasses.replace(settings, stream=dataclasses.replace(settings.stream, retries=1))
    assert not asyncio.run(run())


def test_a_worker_that_stops_also_encodes_whom_the_batch_in_flight_lets_wait(settings: Settings):
    stores = MemoryStores()
    processor = processor_in_memory(settings, MemorySource(), stores)

    async def stop_during_a_batch() -> None:
        async with processor.writing:
            stopping = asyncio.create_task(processor.encode_everyone_postponed())
            await asyncio.sleep(0)  # it begins, and finds that a batch is being written
            processor.pacer.wait({"hot": 0})
        await stopping

    asyncio.run(stop_during_a_batch())
    processor.close()
    assert stores.updated == ["hot"]


def test_a_worker_that_stops_while_a_postponed_embedding_is_published_publishes_it(settings: Settings):
    async def stop_meanwhile() -> list[str]:
        begun, topic_answers = asyncio.Event(), asyncio.Event()

        async def publishes(users: list[str]) -> None:
            begun.set()
            await topic_answers.wait()

        stores = MemoryStores(publishes=publishes)
        processor = processor_in_memory(settings, MemorySource(), stores)
        processor.pacer.wait({"hot": 0})
        following = asyncio.create_task(processor.encode_postponed())
        await begun.wait()
        following.cancel()
        stopping = asyncio.create_task(processor.encode_everyone_postponed())
        await asyncio.wait({following})
        topic_answers.set()
        await stopping
        processor.close()
        return stores.published

    assert asyncio.run(stop_meanwhile()) == ["hot"]
