"""An agent's records in batches: what Faust's `noack_take` gives, at a fraction of its price.

Faust's streams spend a turn of the event loop, a task and a dozen calls on every event before `noack_take` has it in
its list. A worker needs none of that: it takes what lies in the queue of the agent's topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from faust.types import EventT

if TYPE_CHECKING:
    import faust
    from faust.types import Message


async def batches(
    app: faust.App,
    stream: Any,
    *,
    most: int,
    within_seconds: float,
    ready: Callable[[], Awaitable[object]],
    stopping: asyncio.Event,
) -> AsyncIterator[list[Message]]:
    """Up to `most` messages for the agent's `stream`: as soon as there are so many, else `within_seconds` after the
    first, or when `ready` returns, whichever is later. A batch that would only wait in line grows instead; one of a
    worker that is `stopping` does not wait for more.

    They are not acknowledged, and a rebalance or a stop waits until they are. What an earlier generation of the group
    has fetched is left out: it is fetched again."""
    queue = aiter(stream.channel).queue
    with suppress(StopAsyncIteration):  # so a queue ends its agent
        while True:
            closing = partial(_closed, within_seconds, ready, stopping)
            batch = await _batch(app, queue, most=most, closing=closing)
            if batch:
                yield batch
            del batch  # nobody else may keep its messages until the next one comes


async def _batch(
    app: faust.App, queue: Any, *, most: int, closing: Callable[[], Coroutine[Any, Any, None]]
) -> list[Message]:
    batch: list[Message] = []
    found = await queue.get()
    closed = asyncio.create_task(closing())
    try:
        while found is not None:
            # An event, where Faust itself has delivered it (`FreshConsumer.getmany`).
            message: Message = found.message if isinstance(found, EventT) else found
            if app.flow_control.is_active() and message.generation_id == app.consumer_generation_id:
                message.tracked = True
                app.consumer.unacked.add(message)
                batch.append(message)
            found = None if len(batch) >= most else await _next(queue, closed)
    finally:
        closed.cancel()
    return batch


async def _closed(within_seconds: float, ready: Callable[[], Awaitable[object]], stopping: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), within_seconds)
    await ready()


async def _next(queue: Any, closed: asyncio.Task[None]) -> Any:
    """None: the batch is closed."""
    if not queue.empty():
        return queue.get_nowait()
    coming = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait({coming, closed}, return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else None
    finally:
        coming.cancel()
