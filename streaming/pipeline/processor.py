"""One batch of records on its way into the store and the topics: the steps of streaming/worker.py, in order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence, Set
from concurrent.futures import Executor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import faust
import numpy as np
import numpy.typing as npt

from spoor.activity.history import Histories
from spoor.base.errors import UsageError
from spoor.broker.topics import DEFAULT_RECORD_BYTES
from spoor.feature_repo.releases import is_retired
from spoor.streaming.kafka.broker import check_topics
from spoor.streaming.pipeline.daemon_threads import DaemonThreads
from spoor.streaming.pipeline.dead_letter_writer import DeadLetterWriter
from spoor.streaming.pipeline.pacer import EncodePacer
from spoor.streaming.pipeline.publisher import Publisher
from spoor.streaming.pipeline.retries import Retries
from spoor.streaming.pipeline.stores import Stores, open_stores, releases_to_keep_fresh
from spoor.streaming.records.core import DecodedBatch, Record, UserBatch, decode_batch, group_batch
from spoor.streaming.records.dead_letters import DeadLetter
from spoor.streaming.settings import WorkerSettings
from spoor.streaming.status.health import Health
from spoor.streaming.status.lookout import Lookout
from spoor.streaming.status.metrics import StreamMetrics

if TYPE_CHECKING:
    from faust.types import TP, Message

    from spoor.store.writer import GuardedWriter, UpdateResult
    from spoor.streaming.kafka.transport import Leap

log = logging.getLogger(__name__)
T = TypeVar("T")
ByRelease = Mapping[str, Set[str]]  # release → users

_PLACE_AFTER = {"encoded": "after-encode", "written": "after-write"}
_APPEND_TIME = 1  # Kafka's code for record times given by the broker
_BATCHES_AT_ONCE = 3  # one is decoded, one written, one published


class Written(NamedTuple):
    """A batch in the store, and not in the topics yet."""

    result: UpdateResult
    publisher: Publisher
    behind: ByRelease
    waiting: Set[str]  # users whose embedding has to wait


class BatchProcessor:
    """Handles batches. `finished` tells the runner when to stop, `failure` why, where it is an error.

    Up to _BATCHES_AT_ONCE are under way: while one is written, the one before is published and committed, and the one
    behind, if it is full, decoded. Each of the three is done for one batch at a time, in the order in which the batches
    came. Who holds `writing` writes alone, who holds `publishing` publishes and commits alone."""

    def __init__(self, settings: WorkerSettings, app: faust.App, *, count: int | None = None) -> None:
        self.settings = settings
        self.app = app
        self.health = Health(settings.stream.stall_seconds)
        self.metrics = StreamMetrics(self.health.lag)
        self.count = count
        self.taken = 0
        self.failure: BaseException | None = None
        self.finished = asyncio.Event()
        self.writing = asyncio.Lock()
        self.publishing = asyncio.Lock()
        self._decoding = asyncio.Lock()
        self._room = asyncio.Semaphore(_BATCHES_AT_ONCE)
        self._last_written = asyncio.Event()  # whether the batch that was taken last is in the store
        self._last_written.set()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._coming: deque[Set[str]] = deque()  # users of each batch that is being written or waits to be published
        self.unreported = False  # partitions have come for which this worker has not committed its report
        self._pacer = EncodePacer(settings.stream.encode_seconds)
        self._partitions = 0  # of the topic
        self._assigned: set[int] = set()
        self._writes, self._reads, self._decodes = DaemonThreads(), DaemonThreads(), DaemonThreads()
        self._retries = Retries(self.metrics, tries=settings.stream.retries, wait_seconds=settings.stream.retry_seconds)
        self.lookout = Lookout(
            app,
            self.health,
            self.metrics,
            read_store=self._read_store,
            timeout_seconds=settings.kafka.request_timeout_seconds,
        )
        self._stores: Stores | None = None
        self._publisher: Publisher | None = None
        self._letters = self._letter_writer(DEFAULT_RECORD_BYTES)
        self._step_started = 0.0
        self._steps: defaultdict[str, float] = defaultdict(float)  # of the batch that is being written, seconds
        self._told_create_time = False

    def reached(self, place: str) -> None:
        """Called at the places of a batch where a crash matters, from the loop or the writing thread. Does nothing:
        tests put a crash in its place (tests/fail_points.py)."""

    async def open(self) -> None:
        """Loads releases, opens the store, checks the topics. Slow (seconds), so it comes before joining the group."""
        self._stores, self._publisher = await self._opened(self._reads)
        releases, topic = ", ".join(self.releases), self.settings.kafka.topic
        log.info("keeping %s fresh from %s (%d partitions)", releases, topic, self._partitions)

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
                before, (self._stores, self._publisher) = self._stores, opened
        except BaseException:
            opened[0].close()
            raise
        if before is not None:
            await self.in_thread(before.close)
        return self.releases

    @property
    def releases(self) -> tuple[str, ...]:
        """Those that every batch writes."""
        assert self._stores is not None, "open() comes first"
        return tuple(self._stores.writer.encoders)

    async def _opened(self, thread: Executor) -> tuple[Stores, Publisher]:
        releases = await _in_thread(thread, releases_to_keep_fresh, self.settings)
        kafka = self.settings.kafka
        topics = await _in_thread(thread, check_topics, kafka, releases)
        self._partitions = topics.partitions[kafka.topic]
        self._letters = self._letter_writer(topics.letter_bytes)
        stores = await _in_thread(thread, open_stores, self.settings, releases, observe=self._observe)
        self.metrics.rows.expect(*releases)
        self.metrics.stale_rows.expect(*releases)
        publisher = Publisher(
            {release: kafka.embedding_topic(release) for release in releases},
            send=self._send,
            reads=stores.online,
            in_thread=self.in_thread,
            coming=lambda: set().union(*self._coming),
            form=kafka.embedding_format,
        )
        return stores, publisher

    def close(self) -> None:
        for thread in (self._writes, self._reads, self._decodes):
            thread.shutdown(wait=self.failure is None)
        if self._stores is not None:
            self._stores.close()

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self.health.failed(self.failure)
        self.finished.set()

    async def in_thread(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Runs a blocking call that writes nothing beside the batches."""
        return await _in_thread(self._reads, function, *args, **options)

    async def take(self, messages: Sequence[Message]) -> None:
        """Begins with a batch, once there is room for it. Does not return after a failure: nothing more is taken."""
        await self._room.acquire()
        if self.failure is not None:
            await asyncio.Event().wait()
        self._last_written = asyncio.Event()
        self._begin(self._taken(messages, self._last_written))

    async def ready(self) -> None:
        """Returns when the batch that was taken last is in the store, or has ended without: the next one need not wait
        in line."""
        await self._last_written.wait()

    async def finish(self) -> None:
        """Returns when no batch is under way."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _taken(self, messages: Sequence[Message], in_store: asyncio.Event) -> None:
        try:
            await self.handle(messages, in_store)
        except Exception as error:
            self.fail(error)
        finally:
            in_store.set()
            self._room.release()

    async def handle(self, messages: Sequence[Message], in_store: asyncio.Event) -> None:
        """One batch: steps 2 to 9 of streaming/worker.py. Raises InfrastructureError when a server stays away.

        After another batch's failure it ends early. Above all it acknowledges nothing: Faust would commit what follows
        a batch that was not handled."""
        async with self._decoding:
            current = self._of_this_generation(messages)
            if not current:
                return
            decoded = await self._decode(current)
        line: dict[str, Any] = {"records": len(current), "dead": len(decoded.dead_letters)}
        batch = written = None
        if decoded.events:
            batch = group_batch(decoded, max_events=self.settings.history.max_events, as_of=self.settings.stream.as_of)
        async with self.writing:  # without events too: else it would be acknowledged before one that is being written
            if self.failure is not None:
                return
            if batch is not None:
                written = await self._write(batch)
        in_store.set()
        if written is not None:
            now_ms = time.time_ns() // 1_000_000
            self.metrics.written(_times_written(decoded, written.result.set_aside), now_ms)
            line["oldest_ms"] = now_ms - int(decoded.append_times_ms.min())
        async with self.publishing:
            if self.failure is not None:
                return
            if written is not None:
                republished = await self._publish(written)
                self.reached("after-publish")
                self._count(written, decoded, republished)
                line |= {"users": len(written.result.users), "changed": int(written.result.changed.sum())}
                line |= {"refused": written.result.refused, "republished": republished}
            for message in current:
                message.ack(self.app.consumer)
            await self._retries.run("committed", self._commit)
        self.metrics.batch_done()
        log.info("batch %s", " ".join(f"{name}={value}" for name, value in line.items()))
        self.taken += len(current)
        if self.count is not None and self.taken >= self.count:
            self.finished.set()

    async def encode_postponed(self) -> None:
        """Encodes, writes and publishes who had to wait and has waited enough. Raises as `handle`. What has begun is
        published where this is cancelled, too: the store would be ahead of the topic, and nobody would know it."""
        while await asyncio.shield(self._begin(self._encode_due())):
            pass

    async def encode_everyone_postponed(self) -> None:
        """As `encode_postponed`, for those too who would have to wait on; from now on nobody waits."""
        self._pacer.end()
        await self.encode_postponed()
        async with self.publishing:  # what was written before is published
            pass

    async def assigned(self, assigned: Iterable[TP]) -> None:
        """After a rebalance: forgets the histories of lost partitions, and reports what retention took from ours."""
        partitions = {tp.partition for tp in assigned}
        self.metrics.partitions.set(len(partitions))
        log.info("partitions %s", " ".join(map(str, sorted(partitions))) or "none")
        for gone in self._assigned - partitions:
            if self._stores is not None:
                self._stores.cache.drop_partition(gone)
        self._assigned = partitions
        self.unreported = bool(partitions)
        if not partitions:
            log.warning(
                "no partition for this worker: all %d of %s belong to other workers of group %s; it stands by",
                self._partitions,
                self.settings.kafka.topic,
                self.settings.stream.group,
            )
        self.health.assigned(partitions)
        await self.lookout.assigned(list(assigned))

    def leapt(self, leap: Leap) -> None:
        """A fetch position that is not in the log has gone to the earliest record."""
        self.lookout.leapt(leap)
        self.unreported = True  # commits the offset, so that another worker does not count the same records

    # -- steps

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _encode_due(self) -> bool:
        """Handles as many of the postponed who are due as a batch may have. Returns whether there were any."""
        try:
            async with self.writing:  # first: the batch that has it may let users wait whose time is over by now
                due = dict(islice(self._pacer.due().items(), self.settings.stream.batch_events))
                if not due or self.failure is not None:
                    return False
                written = await self._encode_again(due)
            async with self.publishing:
                await self._publish(written)
            return True
        except Exception as error:
            self.fail(error)  # nobody may be waiting for this any more
            raise

    def _of_this_generation(self, messages: Sequence[Message]) -> list[Message]:
        """A batch taken before a rebalance belongs, unacknowledged, to its new owner. What is left out must leave
        Faust's set of unacknowledged messages too, or the next rebalance would wait for it."""
        generation = self.app.consumer_generation_id
        current = [message for message in messages if message.generation_id == generation]
        if len(current) < len(messages):
            for message in messages:
                if message.generation_id != generation:
                    self.app.consumer.unacked.discard(message)
            self.metrics.skipped.add(len(messages) - len(current))
            log.info("left %d records to their new owner", len(messages) - len(current))
        return current

    async def _decode(self, messages: Sequence[Message]) -> DecodedBatch:
        """Also sends the dead letters."""
        self.metrics.batch_started(len(messages))
        records = [self._record(message) for message in messages]
        decoded = await self._retries.run(
            "decoded", lambda: _in_thread(self._decodes, decode_batch, records, self.settings.events)
        )
        self.metrics.decoded.add(len(decoded.events))
        await self._retries.run("dead-letters", lambda: self._send_dead_letters(decoded.dead_letters))
        return decoded

    def _record(self, message: Message) -> Record:
        if message.timestamp_type != _APPEND_TIME and not self._told_create_time:
            self._told_create_time = True
            log.warning(
                "records of %s carry their producers' times: freshness and the check against future events trust them; "
                "set message.timestamp.type=LogAppendTime on the topic",
                message.topic,
            )
        headers: Any = message.headers or ()
        return Record(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            append_time_ms=round(message.timestamp * 1000),
            key=message.key,
            value=message.value,
            headers=tuple(headers.items() if isinstance(headers, dict) else headers),
        )

    async def _send_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        await self._letters.write(letters)
        for letter in letters:
            self.metrics.dead.add(1, letter.reason)
            log.info("dead letter %s: %s (%s: %s)", letter.origin, letter.reason, letter.field, letter.found)

    def _letter_writer(self, most_bytes: int) -> DeadLetterWriter:
        topic = self.settings.kafka.dead_letter_topic
        return DeadLetterWriter(topic, send=self._send, in_thread=self.in_thread, most_bytes=most_bytes)

    async def _write(self, batch: UserBatch) -> Written:
        assert self._publisher is not None, "open() comes first"
        self._coming.append(set(batch.user_ids))
        too_soon = self._pacer.too_soon(batch.user_ids)
        result = await self._retries.run("store", lambda: self._update(batch, postpone=too_soon))
        behind = users_behind(result)
        return Written(result, self._publisher, behind, self._pace(batch, result, behind, too_soon))

    async def _update(self, batch: UserBatch, *, postpone: npt.NDArray[np.bool_]) -> UpdateResult:
        assert self._stores is not None, "open() comes first"
        return await _in_thread(
            self._writes,
            self._update_now,
            self._stores.writer,
            batch.user_ids,
            batch.events,
            as_of_ms=batch.as_of_ms,
            partitions=batch.partitions,
            postpone=postpone,
        )

    def _update_now(self, writer: GuardedWriter, *batch: Any, **options: Any) -> UpdateResult:
        self._leave_retired(writer)
        self._steps.clear()
        self._step_started = time.perf_counter()
        self.reached("before-read")
        result = writer.update(*batch, **options)
        for step, seconds in self._steps.items():
            self.metrics.step_seconds.labels(step).observe(seconds)
        return result

    async def _publish(self, written: Written) -> int:
        """Returns how many rows had to be published again."""
        self._coming.popleft()
        return await self._retries.run("published", lambda: self._publish_now(written))

    async def _publish_now(self, written: Written) -> int:
        live = await self.in_thread(self._live, written.result.rows)
        return await written.publisher.publish({name: written.result.rows[name] for name in live})

    async def _commit(self) -> None:
        # aiokafka repeats a commit for as long as the broker is away: the deadline makes that a failure. It goes on all
        # the same, and Faust lets the next try wait for it: of one that is cancelled Faust forgets the offsets, and
        # then commits nothing of these partitions any more, as there is a gap before whatever follows.
        commit = self._begin(self.app.consumer.commit())
        await asyncio.wait_for(asyncio.shield(commit), timeout=3 * self.settings.kafka.request_timeout_seconds)

    async def _encode_again(self, users: Mapping[str, int]) -> Written:
        """`users`: user → partition of its events."""
        none = np.zeros(len(users), np.int64)
        written = await self._write(UserBatch(list(users), Histories.empty(len(users)), none, list(users.values())))
        self._pacer.encoded(users)
        self.metrics.waiting.set(self._pacer.waiting)
        return written

    # -- helpers of the steps

    async def _read_store(self) -> None:
        assert self._stores is not None, "open() comes first"
        await self.in_thread(self._stores.online.read, ["0"], [])

    def _leave_retired(self, writer: GuardedWriter) -> None:
        """Comes before every try of a write. `spoor release retire` marks a release first and then removes its views
        and its topic: from the mark on they are not touched any more, and a try that failed because they went succeeds
        without them. Raises UsageError where no release is left."""
        for release in set(writer.encoders) - set(self._live(writer.encoders)):
            log.warning("release %s is retired: this worker no longer writes it", release)
            writer.drop(release)
        if not writer.encoders:
            raise UsageError(
                "every release that this worker keeps fresh is retired",
                hint="correct stream.releases and start the worker again: nothing was lost",
            )

    def _live(self, releases: Iterable[str]) -> list[str]:
        """Those that are not retired, by their files: read before every try of a write or a publication."""
        folder = self.settings.features.releases_folder
        return [release for release in releases if not is_retired(folder / release)]

    def _observe(self, step: str) -> None:
        """Called by the writer, in its thread, after each of its steps, which it takes several times in a batch."""
        now = time.perf_counter()
        self._steps[step] += now - self._step_started
        self._step_started = now
        self.reached(_PLACE_AFTER.get(step, ""))
        if self.app.rebalancing:
            self.reached("during-rebalance")

    async def _send(self, topic: str, key: bytes, value: bytes | None) -> Awaitable[object]:
        return await self.app.producer.send(topic, key, value, None, None, None)

    def _pace(
        self, batch: UserBatch, result: UpdateResult, behind: ByRelease, too_soon: npt.NDArray[np.bool_]
    ) -> Set[str]:
        """Who had to wait is remembered, everybody else's floor begins. Returns the users who wait."""
        rows = zip(batch.user_ids, batch.partitions, too_soon, strict=True)
        somewhere = set().union(*behind.values())
        waiting = {user: partition for user, partition, soon in rows if soon and user in somewhere}
        self._pacer.wait(waiting)
        self._pacer.encoded(batch.user_ids[row] for row in np.flatnonzero(result.changed & ~too_soon))
        self.metrics.postponed.add(int((result.changed & too_soon).sum()))
        self.metrics.waiting.set(self._pacer.waiting)
        return waiting.keys()

    def _count(self, written: Written, decoded: DecodedBatch, republished: int) -> None:
        result = written.result
        self.metrics.handled(result.users)
        self.metrics.changed.add(int(result.changed.sum()))
        self.metrics.cache_hits.add(result.cache_hits)
        self.metrics.cache_misses.add(len(result.users) - result.cache_hits)
        with_history = int((result.histories.lengths > 0).sum())  # a forgotten user has a revision and no events
        for release, users in written.behind.items():
            self.metrics.rows.add(with_history - len(users), release)
            self.metrics.stale_rows.add(len(users - written.waiting), release)
        self.metrics.set_aside.add(len(result.set_aside))
        self.metrics.refused.add(result.refused)
        self.metrics.encode_failures.add(result.encode_failures)
        self.metrics.forgotten.add(result.forgotten)
        self.metrics.republished.add(republished)
        self.metrics.mismatched.add(decoded.mismatched_keys)
        for field, events in decoded.unknown_names.items():
            self.metrics.unknown.add(events, field)


def _times_written(decoded: DecodedBatch, set_aside: Collection[str]) -> npt.NDArray[np.int64]:
    """Append times of the events whose users were written."""
    if not set_aside:
        return decoded.append_times_ms
    return decoded.append_times_ms[[event.user_id not in set_aside for event in decoded.events]]


def users_behind(result: UpdateResult) -> ByRelease:
    """Release → handled users with events whose embedding is behind their history or missing."""
    revisions = dict(zip(result.users, result.revisions.tolist(), strict=True))
    with_history = {result.users[row] for row in np.flatnonzero(result.histories.lengths > 0)}
    return {
        release: with_history - {row.user_id for row in rows if row.revision == revisions[row.user_id]}
        for release, rows in result.rows.items()
    }


async def _in_thread(thread: Executor, function: Callable[..., T], *args: Any, **options: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, lambda: function(*args, **options))
