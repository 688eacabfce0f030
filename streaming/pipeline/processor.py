"""One batch of records, from Kafka into the store and the topics: nine steps, and the effect of a crash after each.

 1. take up to `batch_events` records in `batch_seconds`, more while the    nothing happened: delivered again
    batch ahead is not written
 2. leave out records of an earlier generation of the group                 their new owner takes them
 3. decode (in its own thread; may ask a schema registry)                   nothing happened: delivered again
 4. produce the dead letters, await their acknowledgement                   produced again under the same key
 5. group by user; read, merge (in another thread), encode (in a process)   nothing happened: delivered again
 6. compare-and-set write of history and embeddings (in that thread)        delivered again, merging changes nothing,
                                                                            the rows found are published
 7. publish every user's row, changed or not, await the acknowledgements    published again, same rows
 8. read the rows again, publish those that another writer has replaced     delivered again, steps 7 and 8 repeat
 9. acknowledge the records in order, commit the offsets                    after the commit: done

Up to three batches are under way: while one is in steps 5 and 6, the one before it is in 7 to 9, and the one behind,
if it is full, in 2 to 4. Each of the three stages has one batch at a time, in the order in which the batches came:
Faust commits the offset after the last record acknowledged, whatever came before it.

A step whose server fails is tried `retries` times with growing waits (retries.py); then the worker stops, offsets
uncommitted. Nothing a record holds stops the worker: it is a dead letter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from spoor.activity.history import Histories
from spoor.streaming.pipeline.daemon_threads import DaemonThreads
from spoor.streaming.pipeline.pacer import EncodePacer
from spoor.streaming.pipeline.retries import Retries
from spoor.streaming.pipeline.stores import Stores, open_stores
from spoor.streaming.records.core import DecodedBatch, UserEvents, decode_batch, group_batch
from spoor.streaming.settings import WorkerSettings
from spoor.streaming.status.health import Health
from spoor.streaming.status.metrics import StreamMetrics

if TYPE_CHECKING:
    from faust.types import Message

    from spoor.store.writer import UpdateResult
    from spoor.streaming.kafka.source import KafkaSource

log = logging.getLogger(__name__)
T = TypeVar("T")

_PLACE_AFTER = {"encoded": "after-encode", "written": "after-write"}
_BATCHES_AT_ONCE = 3  # one is decoded, one written, one published


class BatchProcessor:
    """Handles batches. `finished` tells the runner when to stop, `failure` why, where it is an error. `stores`: opened
    ones; else `open` comes first. The holder of `writing` writes alone, the holder of `publishing` publishes and
    commits alone."""

    def __init__(self, settings: WorkerSettings, source: KafkaSource, *, stores: Stores | None = None) -> None:
        stream = settings.stream
        self.settings = settings
        self.health = Health(stream.stall_seconds)
        self.metrics = StreamMetrics(self.health.lag)
        self.pacer = EncodePacer(stream.encode_seconds)
        self.taken = 0  # records handled
        self.count: int | None = None  # records that are enough
        self.failure: BaseException | None = None
        self.finished = asyncio.Event()
        self.writing, self.publishing, self._decoding = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self.writes, self.reads, self._decodes = DaemonThreads(), DaemonThreads(), DaemonThreads()
        self._source = source
        self._stores = stores
        self._retries = Retries(self.metrics, tries=stream.retries, wait_seconds=stream.retry_seconds)
        self._room = asyncio.Semaphore(_BATCHES_AT_ONCE)
        self._last_written = asyncio.Event()  # whether the batch that was taken last is in the store
        self._last_written.set()
        self._assigned: Set[int] = frozenset()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._coming: tuple[Set[str], ...] = ()  # users of each batch that is being written or waits to be published

    async def take(self, records: Sequence[Message]) -> None:
        """Begins with a batch, once there is room for it. Does not return after a failure: nothing more is taken."""
        await self._room.acquire()
        if self.failure is not None:
            await asyncio.Event().wait()
        self._last_written = asyncio.Event()
        self._begin(self._taken(records, self._last_written))

    async def handle(self, records: Sequence[Message], in_store: asyncio.Event) -> None:
        """Steps 2 to 9 for one batch. Sets `in_store` after step 6. Raises InfrastructureError if a server stays away.

        After another batch's failure it ends early. Above all it acknowledges nothing: Faust would commit what follows
        a batch that was not handled."""
        result, waiting = None, frozenset[str]()
        async with self._decoding:
            current = self._current(records)  # 2
            if not current:
                return
            decoded = await self._decode(current)  # 3
            await self._send_dead_letters(decoded)  # 4
        line: dict[str, Any] = {"records": len(current), "dead": len(decoded.dead_letters)}
        batch = self._group(decoded)  # 5
        async with self.writing:  # without events too: else it would be acknowledged before one that is being written
            if self.failure is not None:
                return
            stores = self.stores
            if batch is not None:
                result, waiting = await self._write(stores, batch)  # 5, 6
        in_store.set()
        if result is not None:
            line["oldest_ms"] = self.metrics.stored(decoded, result)
        async with self.publishing:
            if self.failure is not None:
                return
            if result is not None:
                republished = await self._publish(stores, result)  # 7, 8
                self.reached("after-publish")
                self.metrics.published(decoded, result, waiting, republished)
                line |= {"users": len(result.users), "changed": int(result.changed.sum())}
                line |= {"refused": result.refused, "republished": republished}
            self._source.acknowledge(current)  # 9
            await self._retries.run("committed", self._source.commit)
        self.metrics.batch_done()
        log.info("batch %s", " ".join(f"{name}={value}" for name, value in line.items()))
        self.taken += len(current)
        if self.count is not None and self.taken >= self.count:
            self.finished.set()

    # -- steps

    def _current(self, records: Sequence[Message]) -> list[Message]:
        current = self._source.current(records)
        if skipped := len(records) - len(current):
            self.metrics.skipped.add(skipped)
            log.info("left %d records to their new owner", skipped)
        return current

    async def _decode(self, records: Sequence[Message]) -> DecodedBatch:
        self.metrics.batch_started(len(records))
        decoded = await self._retries.run(
            "decoded", lambda: self._decodes.run(decode_batch, records, self.settings.events)
        )
        self.metrics.decoded.add(len(decoded.events))
        return decoded

    async def _send_dead_letters(self, decoded: DecodedBatch) -> None:
        letters = decoded.dead_letters
        await self._retries.run("dead-letters", lambda: self.stores.letters.write(letters))
        for letter in letters:
            self.metrics.dead.add(1, letter.reason)
            log.info("dead letter %s: %s (%s: %s)", letter.origin, letter.reason, letter.field, letter.found)

    def _group(self, decoded: DecodedBatch) -> UserEvents | None:
        settings = self.settings
        if not decoded.events:
            return None
        return group_batch(decoded, max_events=settings.history.max_events, as_of=settings.stream.as_of)

    async def _write(self, stores: Stores, batch: UserEvents) -> tuple[UpdateResult, Set[str]]:
        """Returns the users whose embedding waits, too."""
        self._coming = (*self._coming, set(batch.user_ids))
        too_soon = self.pacer.too_soon(batch.user_ids)

        def update() -> UpdateResult:
            stores.leave_retired()
            self.metrics.write_began()
            self.reached("before-read")
            result = stores.update(batch, postpone=too_soon)
            self.metrics.write_ended()
            return result

        result = await self._retries.run("store", lambda: self.writes.run(update))
        waiting = self.pacer.written(result, batch.partitions, too_soon)
        self.metrics.postponed.add(int((result.changed & too_soon).sum()))
        self.metrics.waiting.set(self.pacer.waiting)
        return result, waiting

    async def _publish(self, stores: Stores, result: UpdateResult) -> int:
        """Returns how many rows had to be published again."""
        self._coming = self._coming[1:]
        return await self._retries.run("published", lambda: stores.publish(result.rows))

    # -- embeddings that waited

    async def encode_postponed(self) -> None:
        """Encodes, writes and publishes the users who have waited enough. Raises as `handle`. What has begun is
        published where this is cancelled, too: else the store would be ahead of the topic, without a trace."""
        while await asyncio.shield(self._begin(self._encode_due())):
            pass

    async def encode_everyone_postponed(self) -> None:
        """As `encode_postponed`, for users who would have to wait longer, too; from now on no user waits."""
        self.pacer.end()
        await self.encode_postponed()
        async with self.publishing:  # what was written before is published
            pass

    async def _encode_due(self) -> bool:
        """Handles as many of the users who are due as a batch may have. Returns whether there were any."""
        try:
            async with self.writing:  # first: the batch that has it may let users wait whose time is over by now
                due = self.pacer.due(self.settings.stream.batch_events)
                if not due or self.failure is not None:
                    return False
                stores = self.stores
                result, _ = await self._write(stores, _without_events(due))
            async with self.publishing:
                await self._publish(stores, result)
            return True
        except Exception as error:
            self.fail(error)  # a caller that was cancelled does not see it
            raise

    # -- start, reload, end

    def reached(self, place: str) -> None:
        """Called at the places of a batch where a crash matters, from the loop or the writing thread. Does nothing:
        tests put a crash in its place (tests/fail_points.py)."""

    async def open(self) -> None:
        """Loads releases, opens the store, checks the topics. Slow (seconds), so it comes before joining the group."""
        self._stores = await self._opened(self.reads)
        releases, topic = ", ".join(self.stores.releases), self.settings.kafka.topic
        log.info("keeping %s fresh from %s (%d partitions)", releases, topic, self.stores.partitions)

    async def reload(self) -> tuple[str, ...]:
        """Opens everything anew beside the batches, with the releases that are live now: from the next batch on they
        are written. Returns their names. Raises what `open` raises, and then nothing has changed."""
        loading = DaemonThreads()
        try:
            opened = await self._opened(loading)
        finally:
            loading.shutdown(wait=False)
        try:
            async with self.writing:
                before, self._stores = self.stores, opened
        except BaseException:
            opened.close()
            raise
        await self.reads.run(before.close)
        return opened.releases

    def assigned(self, partitions: Set[int]) -> None:
        """After a rebalance: forgets the histories of lost partitions."""
        self.stores.forget_partitions(self._assigned - partitions)
        self._assigned = partitions
        if not partitions:
            log.warning(
                "no partition for this worker: all %d of %s belong to other workers of group %s; it stands by",
                self.stores.partitions,
                self.settings.kafka.topic,
                self.settings.stream.group,
            )

    @property
    def stores(self) -> Stores:
        assert self._stores is not None, "open() comes first"
        return self._stores

    async def _opened(self, thread: DaemonThreads) -> Stores:
        stores = await thread.run(
            open_stores,
            self.settings,
            send=self._source.send,
            in_thread=self.reads.run,
            coming=lambda: set().union(*self._coming),
            observe=self._observe,
        )
        self.metrics.rows.expect(*stores.releases)
        self.metrics.stale_rows.expect(*stores.releases)
        return stores

    def _observe(self, step: str) -> None:
        """Called by the writer, in its thread, after each of its steps, which it takes several times in a batch."""
        self.metrics.step_ended(step)
        self.reached(_PLACE_AFTER.get(step, ""))
        if self._source.rebalancing:
            self.reached("during-rebalance")

    def close(self) -> None:
        for thread in (self.writes, self.reads, self._decodes):
            thread.shutdown(wait=self.failure is None)
        if self._stores is not None:
            self._stores.close()

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self.health.failed(self.failure)
        self.finished.set()

    async def ready(self) -> None:
        """Returns when the batch that was taken last is in the store, or has ended without: the next one need not wait
        in line."""
        await self._last_written.wait()

    async def finish(self) -> None:
        """Returns when no batch is under way."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _taken(self, records: Sequence[Message], in_store: asyncio.Event) -> None:
        try:
            await self.handle(records, in_store)
        except Exception as error:
            self.fail(error)
        finally:
            in_store.set()
            self._room.release()

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task


def _without_events(users: Mapping[str, int]) -> UserEvents:
    """`users`: user → partition of its events."""
    return UserEvents(list(users), Histories.empty(len(users)), np.zeros(len(users), np.int64), list(users.values()))
