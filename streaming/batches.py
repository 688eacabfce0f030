"""An agent's records in batches: what Faust's `noack_take` gives, at a fraction of its price.

Faust's streams spend a turn of the event loop, a task and a dozen calls on every event before `noack_take` has it in
its list. A worker needs none of that: it takes what lies in the queue of the agent's topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from faust.types import EventT

if TYPE_CHECKING:
    import faust
    from faust.types import Message


async def batches(app: faust.App, stream: Any, *, most: int, within_seconds: float) -> AsyncIterator[list[Message]]:
    """Up to `most` messages for the agent's `stream`, as soon as there are so many or `within_seconds` after the first.

    They are not acknowledged, and a rebalance or a stop waits until they are. What an earlier generation of the group
    has fetched is left out: it is fetched again."""
    queue = aiter(stream.channel).queue
    with suppress(StopAsyncIteration):  # so a queue ends its agent
        while True:
            batch = await _batch(app, queue, most=most, within_seconds=within_seconds)
            if batch:
                yield batch
            del batch  # nobody else may keep its messages until the next one comes


async def _batch(app: faust.App, queue: Any, *, most: int, within_seconds: float) -> list[Message]:
    batch: list[Message] = []
    found = await queue.get()
    deadline = asyncio.get_running_loop().time() + within_seconds
    while found is not None:
        # An event, where Faust itself has delivered it (`FreshConsumer.getmany`).
        message: Message = found.message if isinstance(found, EventT) else found
        if app.flow_control.is_active() and message.generation_id == app.consumer_generation_id:
            message.tracked = True
            app.consumer.unacked.add(message)
            batch.append(message)
        found = None if len(batch) >= most else await _next(queue, deadline)
    return batch


async def _next(queue: Any, deadline: float) -> Any:
    """None: the time is over."""
    if not queue.empty():
        return queue.get_nowait()
    try:
        async with asyncio.timeout_at(deadline):
            return await queue.get()
    except TimeoutError:
        return None
