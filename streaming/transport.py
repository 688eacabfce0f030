"""Faust's Kafka transport with a short fetch wait.

aiokafka has one fetch in flight per broker. Faust lets that fetch wait 1.5 s for data, and a partition whose records
were taken meanwhile is not fetched before it returns: at a few events per second that wait would be most of the time
between an event and its embedding. Faust has no setting for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport

FETCH_WAIT_MS = 100  # at most ten empty requests a second per worker and broker


_log = logging.getLogger("faust.transport")  # mode would name these classes' loggers after this module


class ConsumerThread(AIOKafkaConsumerThread):
    logger = _log

    def _create_worker_consumer(self, transport: Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

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
    logger = _log

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class FreshTransport(Transport):
    Consumer = FreshConsumer
