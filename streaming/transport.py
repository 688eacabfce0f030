"""Faust's Kafka transport with a short fetch wait, a pause, and reports beside the committed offsets.

aiokafka has one fetch in flight per broker. Faust lets that fetch wait 1.5 s for data, and a partition whose records
were taken meanwhile is not fetched before it returns: at a few events per second that wait would be most of the time
between an event and its embedding. Faust has no setting for it.

A pause is aiokafka's own: paused partitions are polled and give nothing, so the worker stays a member of its group for
as long as it takes. Faust's `pause_partitions` ends the polling, after which aiokafka leaves the group.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport

if TYPE_CHECKING:
    from faust.types import TP

FETCH_WAIT_MS = 100  # at most ten empty requests a second per worker and broker


_log = logging.getLogger("faust.transport")  # mode would name these classes' loggers after this module


class ConsumerThread(AIOKafkaConsumerThread):
    logger = _log

    def _create_worker_consumer(self, transport: Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        commit = consumer.commit

        async def commit_with_report(offsets: Mapping[Any, OffsetAndMetadata]) -> None:
            report = self.consumer.report  # type: ignore[attr-defined]
            await commit({tp: OffsetAndMetadata(place.offset, report) for tp, place in offsets.items()})

        consumer.commit = commit_with_report
        return consumer

    async def verify_all_partitions_active(self) -> None:
        """Faust would call paused partitions broken. Whether a worker stalls is for its own watch to say."""
        if not self._ensure_consumer().paused():
            await super().verify_all_partitions_active()

    async def pause(self, paused: bool) -> None:
        """Pauses every assigned partition, or goes on with all. A partition that is assigned later is not paused."""
        consumer = self._ensure_consumer()
        (consumer.pause if paused else consumer.resume)(*consumer.assignment())

    async def on_thread_stop(self) -> None:
        """Stop the consumer; when the broker is gone, aiokafka's fetcher lets its own cancellation escape.

        Uncaught, it would end this thread before it reports its end, and the worker would wait a minute for it.
        """
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._consumer is None or (task is not None and task.cancelling()):
                raise  # this thread itself is being cancelled
            await self._consumer._client.close()  # what the consumer's own stop had left to do

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        """One line in the log; mode would print the traceback past it. The worker's watch ends the worker."""
        _log.error(msg.format(*fmt), exc_info=True)


class FreshConsumer(Consumer):
    """`report` goes with every commit as the offsets' metadata."""

    logger = _log
    report = ""

    @property
    def member(self) -> str:
        """This worker's id in its group; another one after each time that it joins."""
        return self._thread._ensure_consumer()._coordinator.member_id  # type: ignore[attr-defined]

    async def committed(self, tp: TP) -> int | None:
        """The group's offset. Faust exposes it only after its seek, which hides a lost range."""
        thread: Any = self._thread
        return await thread.call_thread(thread._ensure_consumer().committed, tp)

    async def pause(self, paused: bool) -> None:
        """See `ConsumerThread.pause`."""
        await self._thread.call_thread(self._thread.pause, paused)  # type: ignore[attr-defined]

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class FreshTransport(Transport):
    Consumer = FreshConsumer
