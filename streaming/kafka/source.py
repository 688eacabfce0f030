"""The records of one worker and what becomes of them: which are its own, acknowledged, committed, and what it sends.

The processor knows Kafka through this class alone; in tests tests/streaming/memory.py takes its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

import faust

if TYPE_CHECKING:
    from faust.types import Message

log = logging.getLogger(__name__)
_APPEND_TIME = 1  # Kafka's code for record times given by the broker


class KafkaSource:
    """`commit_seconds`: until a commit that the broker has not answered has failed."""

    def __init__(self, app: faust.App, *, commit_seconds: float) -> None:
        self._app = app
        self._commit_seconds = commit_seconds
        self._commits: set[asyncio.Task[bool]] = set()
        self._told_create_time = False

    @property
    def rebalancing(self) -> bool:
        return self._app.rebalancing

    def current(self, records: Sequence[Message]) -> list[Message]:
        """The records of the group's present generation. Those taken before a rebalance belong, unacknowledged, to
        their new owner. They also leave Faust's set of unacknowledged records, or the next rebalance would wait for
        them."""
        generation = self._app.consumer_generation_id
        current = [record for record in records if record.generation_id == generation]
        if len(current) < len(records):
            for record in records:
                if record.generation_id != generation:
                    self._app.consumer.unacked.discard(record)
        if not self._told_create_time and any(record.timestamp_type != _APPEND_TIME for record in current):
            self._told_create_time = True
            log.warning(
                "records of %s carry their producers' times: freshness and the check against future events trust them; "
                "set message.timestamp.type=LogAppendTime on the topic",
                current[0].topic,
            )
        return current

    def acknowledge(self, records: Sequence[Message]) -> None:
        """The next `commit` may commit the offsets after these records. Their order counts: Faust commits the offset
        after the last record acknowledged, whatever came before it."""
        for record in records:
            record.ack(self._app.consumer)

    async def commit(self) -> None:
        """Raises TimeoutError where the broker does not answer in time, and KafkaError.

        aiokafka repeats a commit for as long as the broker is away: the deadline makes that a failure. The commit
        continues all the same, and Faust lets the next try wait for it: Faust forgets the offsets of a commit that is
        cancelled, and then never commits these partitions again, as a gap precedes whatever follows."""
        commit = asyncio.create_task(self._app.consumer.commit())
        self._commits.add(commit)
        commit.add_done_callback(self._commits.discard)
        await asyncio.wait_for(asyncio.shield(commit), self._commit_seconds)

    async def send(self, topic: str, key: bytes, value: bytes | None) -> Awaitable[object]:
        """Hands a record to the producer. Returns what waits for its acknowledgement."""
        return await self._app.producer.send(topic, key, value, None, None, None)
