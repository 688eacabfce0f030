"""Records, and what a processor needs of Kafka and of the stores, in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from faust.types import Message

from spoor.activity.history import Histories
from spoor.config import Settings
from spoor.store.publication import Rows
from spoor.store.writer import UpdateResult
from spoor.streaming.kafka.source import KafkaSource
from spoor.streaming.pipeline.processor import BatchProcessor
from spoor.streaming.pipeline.stores import Stores
from spoor.streaming.records.core import UserEvents
from spoor.streaming.records.dead_letters import DeadLetter


def record(
    value: bytes | None,
    *,
    key: bytes | None = b"u1",
    offset: int = 0,
    partition: int = 0,
    append_time_ms: int | None = None,
    headers: Any = (),
    generation: int = 0,
) -> Message:
    """A record of the topic `activity`, as Faust hands it out. `append_time_ms`: now, where it is not given."""
    seconds = time.time() if append_time_ms is None else append_time_ms / 1000
    return Message(
        "activity", partition, offset, seconds, 1, list(headers), key, value, None, generation_id=generation
    )  # fmt: skip


class MemorySource(KafkaSource):
    """Feeds records to a processor's `take` and notes what becomes of them. `commits` is awaited in each commit."""

    def __init__(self, *, commits: Callable[[], Awaitable[object]] | None = None) -> None:
        self.generation = 0
        self.acknowledged: list[int] = []
        self.sent: list[tuple[str, bytes, bytes | None]] = []
        self._commits_when = commits

    async def records(self, processor: BatchProcessor, *batches: Sequence[Message]) -> None:
        for batch in batches:
            await processor.take(batch)

    async def end(self, processor: BatchProcessor) -> None:
        """No more records: returns when every batch is through."""
        await processor.finish()

    def abort(self) -> None:
        """A rebalance: what was taken before belongs to another worker."""
        self.generation += 1

    @property
    def rebalancing(self) -> bool:
        return False

    def current(self, records: Sequence[Message]) -> list[Message]:
        return [record for record in records if record.generation_id == self.generation]

    def acknowledge(self, records: Sequence[Message]) -> None:
        self.acknowledged += [record.offset for record in records]

    async def commit(self) -> None:
        if self._commits_when is not None:
            await self._commits_when()

    async def send(self, topic: str, key: bytes, value: bytes | None) -> Awaitable[object]:
        self.sent.append((topic, key, value))
        return asyncio.sleep(0)


class MemoryStores:
    """Stores every update. `updates` is called with the users, in the writing thread, `publishes` is awaited with them:
    either may hang or fail."""

    def __init__(
        self,
        *,
        updates: Callable[[list[str]], object] = lambda users: None,
        publishes: Callable[[list[str]], Awaitable[object]] | None = None,
    ) -> None:
        self.updated: list[str] = []
        self.published: list[str] = []
        self._updates, self._publishes = updates, publishes
        self._unpublished: list[list[str]] = []
        self.letters = MemoryLetters()

    def update(self, batch: UserEvents, *, postpone: npt.NDArray[np.bool_]) -> UpdateResult:
        self._updates(batch.user_ids)
        count = len(batch.user_ids)
        self.updated.extend(batch.user_ids)
        self._unpublished.append(batch.user_ids)
        revisions = np.ones(count, np.int64)
        return UpdateResult(batch.user_ids, Histories.empty(count), revisions, {}, np.ones(count, bool), 0, 0)

    async def publish(self, rows: Rows) -> int:
        users = self._unpublished.pop(0)
        if self._publishes is not None:
            await self._publishes(users)
        self.published.extend(users)
        return 0

    def leave_retired(self) -> None: ...
    def forget_partitions(self, partitions: Iterable[int]) -> None: ...
    def close(self) -> None: ...


class MemoryLetters:
    """Takes every dead letter."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        self.letters += letters


def processor_in_memory(settings: Settings, source: MemorySource, stores: MemoryStores) -> BatchProcessor:
    return BatchProcessor(settings, source, stores=cast("Stores", stores))
