"""The consumer's thread ends although aiokafka's own stop breaks off."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer

from activity.settings import KafkaSettings
from streaming.transport import ConsumerThread


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
