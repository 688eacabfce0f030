"""One batch of records on its way into the store and the topics: the steps of streaming/worker.py, in order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import Executor
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

import faust
import numpy as np
import numpy.typing as npt
from aiokafka.errors import KafkaError
from faust.exceptions import FaustError, ProducerSendError

from activity.errors import InfrastructureError, SpoorError, UsageError
from activity.history import Histories
from feature_repo.releases import is_retired
from streaming.broker import check_topics
from streaming.core import DecodedBatch, Record, UserBatch, decode_batch, group_batch, lost_range
from streaming.dead_letters import DeadLetter, encode_dead_letter
from streaming.fail_points import FailPoint
from streaming.health import Health
from streaming.metrics import StreamMetrics
from streaming.pacer import EncodePacer
from streaming.publisher import Publisher, send_all
from streaming.settings import WorkerSettings
from streaming.store_thread import StoreThread
from streaming.stores import Stores, open_stores, releases_to_keep_fresh

if TYPE_CHECKING:
    from faust.types import TP, EventT

    from store.writer import UpdateResult
    from streaming.transport import FreshConsumer

log = logging.getLogger(__name__)
T = TypeVar("T")
ByRelease = Mapping[str, Set[str]]  # release → users

_FAIL_POINT_AFTER = {"encoded": "after-encode", "written": "after-write"}
_SERVER_FAILURES = (InfrastructureError, KafkaError, ProducerSendError, ConnectionError, TimeoutError)
_ANSWER_SECONDS = 10.0  # for a server that is asked how it is
_APPEND_TIME = 1  # Kafka's code for record times given by the broker


class BatchProcessor:
    """Handles batches one after the other. `failed` and `enough` tell the runner when to stop.

    Who holds `turn` writes or commits alone: a batch, the embeddings that were postponed, a report."""

    def __init__(self, settings: WorkerSettings, app: faust.App, *, count: int | None = None) -> None:
        self.settings = settings
        self.app = app
        self.health = Health(settings.stream.stall_seconds)
        self.metrics = StreamMetrics(self.health.lag)
        self.fail_point = FailPoint(settings.stream.fail_point)
        self.count = count
        self.taken = 0
        self.failure: BaseException | None = None
        self.finished = asyncio.Event()
        self.progress = time.monotonic()
        self.turn = asyncio.Lock()
        self.unreported = False  # partitions have come for which this worker has not committed its report
        self._pacer = EncodePacer(settings.stream.encode_seconds)
        self._partitions = 0  # of the topic
        self._assigned: set[int] = set()
        self._earliest: dict[TP, int] = {}  # of assigned partitions, when they were assigned
        self._thread = StoreThread()
        self._stores: Stores | None = None
        self._publisher: Publisher | None = None
        self._step_started = 0.0
        self._encoding = False
        self._told_create_time = False

    async def open(self) -> None:
        """Loads releases, opens the store, checks the topics. Slow (seconds), so it comes before joining the group."""
        self._stores, self._publisher = await self._opened(self._thread)
        releases, topic = ", ".join(self.releases), self.settings.kafka.topic
        log.info("keeping %s fresh from %s (%d partitions)", releases, topic, self._partitions)

    async def reload(self) -> tuple[str, ...]:
        """Opens everything anew beside the batches, with the releases that are live now: from the next batch on they
        are written. Returns their names. Raises what `open` raises, and then nothing has changed."""
        loading = StoreThread()
        try:
            opened = await self._opened(loading)
        finally:
            loading.shutdown(wait=False)
        async with self.turn:
            self._stores, self._publisher = opened
        return self.releases

    @property
    def releases(self) -> tuple[str, ...]:
        """Those that every batch writes."""
        assert self._stores is not None, "open() comes first"
        return tuple(self._stores.writer.encoders)

    async def _opened(self, thread: Executor) -> tuple[Stores, Publisher]:
        releases = releases_to_keep_fresh(self.settings)
        partitions = await _in_thread(thread, check_topics, self.settings.kafka, releases)
        self._partitions = partitions[self.settings.kafka.topic]
        stores = await _in_thread(thread, open_stores, self.settings, releases, observe=self._observe)
        self.metrics.rows.expect(*releases)
        self.metrics.stale_rows.expect(*releases)
        publisher = Publisher(
            {release: self.settings.kafka.embedding_topic(release) for release in releases},
            send=self._send,
            reads=stores.online,
            in_thread=self.in_thread,
            form=self.settings.kafka.embedding_format,
        )
        return stores, publisher

    def close(self) -> None:
        self._thread.shutdown(wait=self.failure is None)

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self.health.failed(self.failure)
        self.finished.set()

    async def in_thread(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Runs a blocking call in the one thread that touches the store."""
        return await _in_thread(self._thread, function, *args, **options)

    async def handle(self, events: Sequence[EventT]) -> None:
        """One batch: steps 2 to 9 of streaming/worker.py. Raises InfrastructureError when a server stays away."""
        async with self.turn:
            await self._handle(events)

    async def _handle(self, events: Sequence[EventT]) -> None:
        current = self._of_this_generation(events)
        if not current:
            return
        self.metrics.batch_started(len(current))
        records = [self._record(event) for event in current]
        decoded = await self._tried("decoded", lambda: asyncio.to_thread(decode_batch, records, self.settings.events))
        self.metrics.decoded.add(len(decoded.events))
        await self._tried("dead-letters", lambda: self._send_dead_letters(decoded.dead_letters))
        line: dict[str, Any] = {"records": len(current), "dead": len(decoded.dead_letters)}
        if decoded.events:
            batch = group_batch(decoded, max_events=self.settings.history.max_events, as_of=self.settings.stream.as_of)
            too_soon = self._pacer.too_soon(batch.user_ids)
            result = await self._tried("store", lambda: self._update(batch, postpone=too_soon))
            now_ms = time.time_ns() // 1_000_000
            self.metrics.written(decoded.append_times_ms, now_ms)
            oldest = now_ms - int(decoded.append_times_ms.min())
            republished = await self._tried("published", lambda: self._publish(result))
            self.fail_point.reached("after-publish")
            behind = users_behind(result)
            waiting = self._pace(batch, result, behind, too_soon)
            self._count(result, behind, waiting, decoded, republished)
            line |= {"users": len(result.users), "changed": int(result.changed.sum())}
            line |= {"refused": result.refused, "republished": republished, "oldest_ms": oldest}
        for event in current:
            event.ack()
        await self._tried("committed", self._commit)
        self.metrics.batch_done()
        self.progress = time.monotonic()
        log.info("batch %s", " ".join(f"{name}={value}" for name, value in line.items()))
        self.taken += len(current)
        if self.count is not None and self.taken >= self.count:
            self.finished.set()

    async def encode_postponed(self) -> None:
        """Encodes, writes and publishes who had to wait and has waited enough. Raises as `handle`."""
        most = self.settings.stream.batch_events
        while True:
            async with self.turn:  # first: the batch that has it may let users wait whose time is over by now
                due = dict(islice(self._pacer.due().items(), most))
                if not due:
                    return
                await self._encode_again(due)

    async def encode_everyone_postponed(self) -> None:
        """As `encode_postponed`, for those too who would have to wait on; from now on nobody waits."""
        self._pacer.end()
        await self.encode_postponed()

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
        self._earliest = {}
        self.health.assigned(partitions)
        self.progress = time.monotonic()
        try:
            await self._report_lost(list(assigned))
        except (KafkaError, TimeoutError) as error:
            log.warning("whether retention has deleted unread events could not be checked: %r", error)

    async def look(self) -> None:
        """Asks broker and store how they are and where the partitions stand, for metrics and probes."""
        self.health.looked()
        try:
            await self._look_at_partitions()
            self.health.answered("broker")
        except (TimeoutError, KafkaError, FaustError):
            self.health.silent("broker", "does not answer")
        await self.ask_store()

    async def ask_store(self) -> None:
        """A read takes its turn in the store's thread. While that thread encodes, a missing answer says nothing."""
        assert self._stores is not None, "open() comes first"
        if self._encoding:
            return
        try:
            await asyncio.wait_for(self.in_thread(self._stores.online.read, ["0"], []), _ANSWER_SECONDS)
            self.health.answered("store")
        except TimeoutError:
            if not self._encoding:
                self.health.silent("store", f"has not answered for {_ANSWER_SECONDS:.0f} s")
        except SpoorError:
            self.health.silent("store", "does not answer")

    async def _look_at_partitions(self) -> None:
        """Raises TimeoutError, KafkaError or FaustError where the broker does not answer."""
        standing = await cast("FreshConsumer", self.app.consumer).standing(_ANSWER_SECONDS)
        self.health.positions(
            {tp.partition: max(handled, self._earliest.get(tp, 0)) for tp, (handled, _) in standing.items()},
            {tp.partition: end for tp, (_, end) in standing.items()},
        )

    # -- steps

    def _of_this_generation(self, events: Sequence[EventT]) -> list[EventT]:
        """A batch taken before a rebalance belongs, unacknowledged, to its new owner. What is left out must leave
        Faust's set of unacknowledged messages too, or the next rebalance would wait for it."""
        generation = self.app.consumer_generation_id
        current = [event for event in events if event.message.generation_id == generation]
        if len(current) < len(events):
            kept = set(map(id, current))
            for event in events:
                if id(event) not in kept:
                    self.app.consumer.unacked.discard(event.message)
            self.metrics.skipped.add(len(events) - len(current))
            log.info("left %d records to their new owner", len(events) - len(current))
        return current

    def _record(self, event: EventT) -> Record:
        message = event.message
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
        topic = self.settings.kafka.dead_letter_topic
        await send_all(self._send, ((topic, *encode_dead_letter(letter)) for letter in letters))
        for letter in letters:
            self.metrics.dead.add(1, letter.reason)
            log.info("dead letter %s: %s (%s: %s)", letter.origin, letter.reason, letter.field, letter.found)

    async def _update(self, batch: UserBatch, *, postpone: npt.NDArray[np.bool_]) -> UpdateResult:
        assert self._stores is not None, "open() comes first"
        await self.in_thread(self._leave_retired)
        self._step_started = time.perf_counter()
        self._encoding = False
        self.fail_point.reached("before-read")
        return await self.in_thread(
            self._stores.writer.update,
            batch.user_ids,
            batch.events,
            as_of_ms=batch.as_of_ms,
            partitions=batch.partitions,
            postpone=postpone,
        )

    async def _publish(self, result: UpdateResult) -> int:
        assert self._publisher is not None and self._stores is not None, "open() comes first"
        await self.in_thread(self._leave_retired)
        live = self._stores.writer.encoders
        return await self._publisher.publish({name: rows for name, rows in result.rows.items() if name in live})

    async def _commit(self) -> None:
        # aiokafka repeats a commit for as long as the broker is away: the deadline makes that a failure.
        await asyncio.wait_for(self.app.consumer.commit(), timeout=3 * self.settings.kafka.request_timeout_seconds)

    async def _encode_again(self, users: Mapping[str, int]) -> None:
        """`users`: user → partition of its events."""
        none = np.zeros(len(users), np.int64)
        batch = UserBatch(list(users), Histories.empty(len(users)), none, list(users.values()))
        result = await self._tried("store", lambda: self._update(batch, postpone=none.astype(bool)))
        await self._tried("published", lambda: self._publish(result))
        self._pacer.encoded(users)
        self.metrics.waiting.set(self._pacer.waiting)

    # -- helpers of the steps

    def _leave_retired(self) -> None:
        """Runs in the store's thread before every try of a write or a publication. `spoor release retire` marks a
        release first and then removes its views and its topic: from the mark on they are not touched any more, and a
        try that failed because they went succeeds without them. Raises UsageError where no release is left."""
        assert self._stores is not None, "open() comes first"
        writer, folder = self._stores.writer, self.settings.features.releases_folder
        for release in [release for release in writer.encoders if is_retired(folder / release)]:
            log.warning("release %s is retired: this worker writes it no more", release)
            writer.drop(release)
        if not writer.encoders:
            raise UsageError(
                "every release that this worker keeps fresh is retired",
                hint="correct stream.releases and start the worker again: nothing was lost",
            )

    async def _tried(self, step: str, action: Callable[[], Awaitable[T]]) -> T:
        """Runs a step; where its server fails, again after a wait that doubles, `retries` times in all."""
        stream = self.settings.stream
        for attempt in range(1, stream.retries + 1):
            started = time.perf_counter()
            try:
                result = await action()
                if step != "store":  # the writer's own steps are observed one by one
                    self.metrics.step_seconds.labels(step).observe(time.perf_counter() - started)
                return result
            except _SERVER_FAILURES as error:
                if attempt == stream.retries:
                    raise _gave_up(step, attempt, error) from error
                wait = stream.retry_seconds * 2 ** (attempt - 1)
                self.metrics.retried.add(1, step)
                log.warning("%s failed (%s), try %d follows in %.1f s", step, _brief(error), attempt + 1, wait)
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _observe(self, step: str) -> None:
        """Called by the writer, in the store's thread, after each of its steps."""
        now = time.perf_counter()
        self.metrics.step_seconds.labels(step).observe(now - self._step_started)
        self._step_started = now
        self._encoding = step == "merged"
        self.fail_point.reached(_FAIL_POINT_AFTER.get(step, ""))
        if self.app.rebalancing:
            self.fail_point.reached("during-rebalance")

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

    def _count(
        self, result: UpdateResult, behind: ByRelease, waiting: Set[str], decoded: DecodedBatch, republished: int
    ) -> None:
        self.metrics.users.add(len(result.users))
        self.metrics.batch_users.observe(len(result.users))
        self.metrics.changed.add(int(result.changed.sum()))
        self.metrics.cache_hits.add(result.cache_hits)
        self.metrics.cache_misses.add(len(result.users) - result.cache_hits)
        with_history = int((result.histories.lengths > 0).sum())  # a forgotten user has a revision and no events
        for release, users in behind.items():
            self.metrics.rows.add(with_history - len(users), release)
            self.metrics.stale_rows.add(len(users - waiting), release)
        self.metrics.refused.add(result.refused)
        self.metrics.encode_failures.add(result.encode_failures)
        self.metrics.forgotten.add(result.forgotten)
        self.metrics.republished.add(republished)
        self.metrics.mismatched.add(decoded.mismatched_keys)
        for field, events in decoded.unknown_names.items():
            self.metrics.unknown.add(events, field)

    async def _report_lost(self, assigned: Sequence[TP]) -> None:
        if not assigned:
            return
        timeout = self.settings.kafka.request_timeout_seconds
        consumer = cast("FreshConsumer", self.app.consumer)
        earliest = await asyncio.wait_for(consumer.earliest_offsets(*assigned), timeout)
        self._earliest = dict(earliest)
        for tp in assigned:
            committed = await asyncio.wait_for(consumer.committed(tp), timeout)
            lost = lost_range(committed=committed, earliest=earliest[tp])
            if lost is not None:
                self.metrics.lost.add(lost[1] - lost[0])
                log.error(
                    "retention deleted unread events: %s partition %d offsets %d to %d; restore them with "
                    "`spoor backfill` if the lake has them, and raise the topic's retention",
                    tp.topic, tp.partition, lost[0], lost[1] - 1,
                )  # fmt: skip


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


def _gave_up(step: str, tries: int, error: BaseException) -> SpoorError:
    hint = getattr(error, "hint", "") or "bring the server back and start the worker again: nothing was lost"
    return InfrastructureError(f"{step} failed {tries} times, the worker stops: {_brief(error)}", hint=hint)


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    name = type(error).__name__
    return text if isinstance(error, SpoorError) or text.startswith(name) else f"{name}: {text}"
