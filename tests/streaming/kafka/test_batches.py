"""An agent's records come in batches: full ones at once, others when the time is over and they would not have to wait
in line, and nothing of the past."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from mode.utils.queues import ThrowableQueue

from spoor.streaming.kafka.batches import batches

LONG_SECONDS, SHORT_SECONDS = 3600.0, 0.01


class Stand:
    """An app, its agent's stream and what its consumer has put into the queue."""

    def __init__(self) -> None:
        self.active = True
        flow: Any = SimpleNamespace(is_active=lambda: self.active)
        self.queue = ThrowableQueue(maxsize=10, flow_control=flow)
        self.unacked: set[Any] = set()
        self.is_ready = asyncio.Event()
        self.is_ready.set()
        self.stopping = asyncio.Event()
        self.app: Any = SimpleNamespace(
            flow_control=flow, consumer_generation_id=1, consumer=SimpleNamespace(unacked=self.unacked)
        )

    def put(self, *offsets: int, generation: int = 1) -> None:
        for offset in offsets:
            self.queue.put_nowait(Record(offset, generation))

    def batches(self, *, most: int, within_seconds: float) -> AsyncIterator[list[Any]]:
        class Channel:
            queue = self.queue

            def __aiter__(self) -> "Channel":
                return self

            async def __anext__(self) -> Any: ...

        stream = SimpleNamespace(channel=Channel())
        return batches(
            self.app, stream, most=most, within_seconds=within_seconds, ready=self.is_ready.wait, stopping=self.stopping
        )


class Record:
    def __init__(self, offset: int, generation: int) -> None:
        self.offset = offset
        self.generation_id = generation


def offsets(batch: list[Any]) -> list[int]:
    return [message.offset for message in batch]


def test_a_full_batch_does_not_wait():
    async def run() -> list[list[int]]:
        stand = Stand()
        stand.put(0, 1, 2, 3)
        found = stand.batches(most=2, within_seconds=LONG_SECONDS)
        return [offsets(await anext(found)), offsets(await anext(found))]

    assert asyncio.run(run()) == [[0, 1], [2, 3]]


def test_what_comes_meanwhile_joins_a_batch_and_time_ends_it():
    async def run() -> list[int]:
        stand = Stand()
        stand.put(0)
        found = stand.batches(most=3, within_seconds=SHORT_SECONDS)
        asyncio.get_running_loop().call_soon(stand.put, 1)
        return offsets(await anext(found))

    assert asyncio.run(run()) == [0, 1]


def test_a_batch_that_would_wait_in_line_grows_until_it_is_full():
    async def run() -> tuple[list[int], list[int]]:
        stand = Stand()
        stand.is_ready.clear()
        stand.put(0)
        found = stand.batches(most=3, within_seconds=SHORT_SECONDS)
        waits = asyncio.ensure_future(anext(found))
        done, _ = await asyncio.wait({waits}, timeout=10 * SHORT_SECONDS)
        assert not done
        stand.put(1)
        done, _ = await asyncio.wait({waits}, timeout=10 * SHORT_SECONDS)
        assert not done
        stand.put(2, 3)
        full = offsets(await waits)
        asyncio.get_running_loop().call_later(2 * SHORT_SECONDS, stand.is_ready.set)
        return full, offsets(await anext(found))

    assert asyncio.run(run()) == ([0, 1, 2], [3])


def test_a_worker_that_stops_does_not_wait_for_a_batch_to_fill():
    async def run() -> tuple[list[int], list[int]]:
        stand = Stand()
        stand.put(0)
        found = stand.batches(most=3, within_seconds=LONG_SECONDS)
        waits = asyncio.ensure_future(anext(found))
        done, _ = await asyncio.wait({waits}, timeout=SHORT_SECONDS)
        assert not done
        stand.stopping.set()
        first = offsets(await waits)
        stand.put(1)
        return first, offsets(await anext(found))

    assert asyncio.run(run()) == ([0], [1])


def test_an_empty_queue_gives_no_batch():
    async def run() -> bool:
        waits = asyncio.ensure_future(anext(Stand().batches(most=3, within_seconds=SHORT_SECONDS)))
        done, _ = await asyncio.wait({waits}, timeout=10 * SHORT_SECONDS)
        waits.cancel()
        return bool(done)

    assert not asyncio.run(run())


def test_records_of_an_earlier_generation_and_of_a_rebalance_are_left_out():
    async def run() -> tuple[list[int], set[int]]:
        stand = Stand()
        stand.put(0, generation=0)
        stand.put(1)
        stand.put(2, generation=0)
        found = stand.batches(most=3, within_seconds=SHORT_SECONDS)
        taken = offsets(await anext(found))
        stand.active = False
        stand.put(3)
        waits = asyncio.ensure_future(anext(found))
        while not stand.queue.empty():
            await asyncio.sleep(0)
        stand.active = True
        stand.put(4)
        return taken + offsets(await waits), {message.offset for message in stand.unacked}

    assert asyncio.run(run()) == ([1, 4], {1, 4})


def test_a_queue_that_is_ended_ends_the_batches():
    async def run() -> list[list[int]]:
        stand = Stand()
        stand.put(0)
        found = stand.batches(most=1, within_seconds=LONG_SECONDS)
        taken = [offsets(await anext(found))]
        await stand.queue.throw(StopAsyncIteration())
        return taken + [offsets(batch) async for batch in found]

    assert asyncio.run(run()) == [[0]]
