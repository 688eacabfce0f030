"""The consumer's thread ends although aiokafka's own stop breaks off, and survives a commit of lost partitions."""

from __future__ import annotations

import asyncio
from typing import cast

from aiokafka import AIOKafkaConsumer
from faust.types import TP

from activity.settings import KafkaSettings
from streaming.transport import ConsumerThread, FreshConsumer
from streaming.worker import build_app
from tests.streaming.conftest import World


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
