"""Batches on their way through the processor: several at once, in their order, and what a failure or a stop leaves."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.types import TP

from spoor.activity.events import encode_event
from spoor.activity.settings import EventSettings
from spoor.base.errors import InfrastructureError
from spoor.config import Settings
from spoor.streaming.kafka.transport import FreshConsumer
from spoor.streaming.pipeline.processor import BatchProcessor, Written
from spoor.streaming.records.core import DecodedBatch, Record, UserBatch, decode_batch
from spoor.streaming.worker import build_app, run_worker
from tests.streaming.conftest import World, some_events


def in_small_batches(world: World) -> Settings:
    stream = dataclasses.replace(world.settings.stream, batch_events=20, retries=1)
    return dataclasses.replace(world.settings, stream=stream)


def batches_as_written(patch: pytest.MonkeyPatch) -> list[UserBatch]:
    """Gets each batch once it is written."""
    write, written = BatchProcessor._write, list[UserBatch]()

    async def write_and_tell(self: BatchProcessor, batch: UserBatch) -> Written:
        result = await write(self, batch)
        written.append(batch)
        return result

    patch.setattr(BatchProcessor, "_write", write_and_tell)
    return written


def test_while_a_batch_is_published_the_next_is_written(world: World, monkeypatch: pytest.MonkeyPatch):
    events = some_events(100)
    world.produce(events)
    publish, written = BatchProcessor._publish, batches_as_written(monkeypatch)
    seen: list[int] = []

    async def publish_after_the_next(self: BatchProcessor, batch: Written) -> int:
        place = len(seen)
        seen.append(place)
        while place < 2 and len(written) < place + 2:  # the third batch is written, and not yet published
            await asyncio.sleep(0.01)
        return await publish(self, batch)

    monkeypatch.setattr(BatchProcessor, "_publish", publish_after_the_next)
    run_worker(in_small_batches(world), count=len(events), timeout_seconds=120)
    assert len(seen) >= 3
    world.assert_holds(events)
    assert world.caught_up()


def test_what_follows_a_batch_that_failed_is_not_committed(world: World, monkeypatch: pytest.MonkeyPatch):
    """Faust would commit the offset after it, and so what was never handled."""
    events = some_events(100)
    world.produce(events)
    publish, settings = BatchProcessor._publish, in_small_batches(world)

    async def fail_once_the_next_is_written(self: BatchProcessor, batch: Written) -> int:
        if len(written) == 1:
            while len(written) < 2:
                await asyncio.sleep(0.01)
            raise InfrastructureError("the first batch is not published")
        return await publish(self, batch)

    with monkeypatch.context() as patch:
        written = batches_as_written(patch)
        patch.setattr(BatchProcessor, "_publish", fail_once_the_next_is_written)
        with pytest.raises(InfrastructureError, match="the first batch is not published"):
            run_worker(settings, timeout_seconds=120)
    assert len(written) >= 2
    assert sum(world.committed().values()) == 0
    run_worker(settings, count=len(events), timeout_seconds=120)
    world.assert_holds(events)


def records_of(values: Sequence[bytes], acknowledged: list[int]) -> list[Any]:
    """Records of one partition as Faust hands them out; `acknowledged` gets their offsets."""
    return [
        SimpleNamespace(
            topic="activity", partition=0, offset=offset, key=b"u", value=value, headers=None,
            generation_id=0, timestamp=time.time(), timestamp_type=0,
            ack=lambda consumer, offset=offset: acknowledged.append(offset),
        )
        for offset, value in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
def test_a_batch_without_events_is_not_acknowledged_before_one_that_is_still_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, fails: bool
):
    """A bad record right behind an event: Faust would commit the offset after both."""
    processor = build_app(settings).processor
    processor.app.consumer_generation_id = 0
    acknowledged: list[int] = []
    event, bad = records_of([encode_event(some_events(1)[0]), b"not json"], acknowledged)
    at_store, decoded = asyncio.Event(), asyncio.Event()
    decode = processor._decode

    async def decode_and_tell(events: Sequence[Any]) -> DecodedBatch:
        result = await decode(events)
        if not result.events:
            decoded.set()
        return result

    async def hangs(batch: UserBatch) -> None:
        await at_store.wait()
        if fails:
            raise InfrastructureError("the store is gone")

    async def nothing(*_: Any) -> None: ...

    monkeypatch.setattr(processor, "_decode", decode_and_tell)
    monkeypatch.setattr(processor, "_write", hangs)
    monkeypatch.setattr(processor, "_commit", nothing)
    monkeypatch.setattr(processor, "_send_dead_letters", nothing)

    async def run() -> list[int]:
        await processor.take([event])
        await processor.take([bad])
        await decoded.wait()  # what follows it in its task has run, up to where it waits
        before = list(acknowledged)
        at_store.set()
        await processor.finish()
        return before

    assert asyncio.run(run()) == []
    assert acknowledged == ([] if fails else [0, 1])
    processor.close()


def test_decoding_takes_no_thread_of_the_loop_and_keeps_no_process(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """A registry that hangs would hold the threads in which names of hosts are looked up, and Python waits for them."""
    processor = build_app(settings).processor
    processor.app.consumer_generation_id = 0
    threads: list[threading.Thread] = []

    def decode(records: Sequence[Record], events: EventSettings) -> DecodedBatch:
        threads.append(threading.current_thread())
        return decode_batch(records, events)

    monkeypatch.setattr("spoor.streaming.pipeline.processor.decode_batch", decode)

    async def run() -> DecodedBatch:
        taken = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, taken.wait)
        try:
            return await asyncio.wait_for(processor._decode(records_of([encode_event(some_events(1)[0])], [])), 30)
        finally:
            taken.set()
            await busy

    assert len(asyncio.run(run()).events) == 1
    assert [thread.daemon for thread in threads] == [True]
    processor.close()


@pytest.mark.parametrize("fails", [False, True])
def test_it_is_ready_for_another_batch_when_those_before_are_in_the_store(
    fails: bool, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    processor = build_app(settings).processor
    processor.app.consumer_generation_id = 0
    (event,) = records_of([encode_event(some_events(1)[0])], [])
    at_store, at_topic = asyncio.Event(), asyncio.Event()

    async def writes(batch: UserBatch) -> None:
        await at_store.wait()
        if fails:
            raise InfrastructureError("the store is gone")

    async def commits() -> None:
        await at_topic.wait()

    monkeypatch.setattr(processor, "_write", writes)
    monkeypatch.setattr(processor, "_commit", commits)

    async def run() -> bool:
        await processor.ready()
        await processor.take([event])
        ready = asyncio.ensure_future(processor.ready())
        await asyncio.wait({ready}, timeout=0.1)
        early = ready.done()
        at_store.set()
        await ready
        at_topic.set()
        await processor.finish()
        return early

    assert not asyncio.run(run())
    processor.close()


def test_a_commit_that_the_broker_answers_too_late_is_made_up_for(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    quick = dataclasses.replace(settings, kafka=dataclasses.replace(settings.kafka, request_timeout_seconds=0.01))
    app, partition = build_app(quick), TP("activity", 0)
    consumer = cast("FreshConsumer", app.consumer)

    async def run() -> list[int | None]:
        broker_is_back = asyncio.Event()

        async def commit(_: Mapping[TP, int]) -> bool:
            return await broker_is_back.wait()

        async def flush() -> None: ...

        monkeypatch.setattr(consumer, "assignment", lambda: {partition})
        monkeypatch.setattr(consumer, "_commit", commit)
        monkeypatch.setattr(app.producer, "flush", flush)
        committed = consumer._committed_offset
        committed[partition] = 10
        consumer._acked[partition].extend([10, 11, 12])
        with pytest.raises(TimeoutError):
            await app.processor._commit()
        broker_is_back.set()
        await app.processor._commit()  # the next try
        seen = [committed[partition]]
        consumer._acked[partition].extend([13, 14])
        await app.processor._commit()
        return [*seen, committed[partition]]

    assert asyncio.run(run()) == [13, 15]
    app.processor.close()


def test_a_worker_that_stops_also_encodes_whom_the_batch_in_flight_lets_wait(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    processor = build_app(settings).processor
    encoded: list[str] = []

    async def encode_again(users: Mapping[str, int]) -> None:
        encoded.extend(users)
        processor._pacer.encoded(users)

    async def publish(written: None) -> None: ...

    monkeypatch.setattr(processor, "_encode_again", encode_again)
    monkeypatch.setattr(processor, "_publish", publish)

    async def stop_during_a_batch() -> None:
        async with processor.writing:
            stopping = asyncio.create_task(processor.encode_everyone_postponed())
            await asyncio.sleep(0)  # it begins, and finds that a batch is being written
            processor._pacer.wait({"hot": 0})
        await stopping

    asyncio.run(stop_during_a_batch())
    processor.close()
    assert encoded == ["hot"]


def test_a_worker_that_stops_while_a_postponed_embedding_is_published_publishes_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    processor = build_app(settings).processor
    published: list[str] = []

    async def encode_again(users: Mapping[str, int]) -> list[str]:
        processor._pacer.encoded(users)
        return list(users)

    async def stop_meanwhile() -> None:
        begun, topic_answers = asyncio.Event(), asyncio.Event()

        async def publish(written: list[str]) -> None:
            begun.set()
            await topic_answers.wait()
            published.extend(written)

        monkeypatch.setattr(processor, "_encode_again", encode_again)
        monkeypatch.setattr(processor, "_publish", publish)
        processor._pacer.wait({"hot": 0})
        following = asyncio.create_task(processor.encode_postponed())
        await begun.wait()
        following.cancel()
        stopping = asyncio.create_task(processor.encode_everyone_postponed())
        await asyncio.wait({following})
        topic_answers.set()
        await stopping

    asyncio.run(stop_meanwhile())
    processor.close()
    assert published == ["hot"]
