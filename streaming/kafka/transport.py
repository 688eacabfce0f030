"""A Faust app and its Kafka transport with a short fetch wait, the configured isolation level, a pause, and reports
beside the committed offsets.

aiokafka has one fetch in flight per broker. Faust lets that fetch wait 1.5 s for data, and a partition whose records
were taken meanwhile is not fetched before it returns: at a few events per second that wait would be most of the time
between an event and its embedding. Here it waits a tenth of a second, or for FETCH_BYTES: a fetch that came back with
the first record would come back hundreds of times a second, and keep broker and worker busy with requests. Faust has
no settings for these, and reads uncommitted records in any case.

A transaction leaves offsets behind that no record has: its marker, and its records if it was aborted. Faust commits
only what follows a record, so such offsets at a partition's end stay uncommitted: `FreshConsumer.handled` passes them.

A fetch position whose records retention has deleted is an error here ("none" as aiokafka's reset policy), and not a
silent leap to the earliest record, as with "earliest": the leap is made here and told to the lookout. Gaps within the
log, of compaction and transactions, are no error: there the position exists.

A pause is aiokafka's own: paused partitions are polled and give nothing, so the worker stays a member of its group for
as long as it takes. Faust's `pause_partitions` ends the polling, after which aiokafka leaves the group.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, cast

import faust
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.consumer import ensure_TP
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP

from spoor.broker.settings import IsolationLevel

FETCH_BYTES = 16 * 1024
FETCH_WAIT_MS = 100  # ten requests a second per worker and broker where less comes
_TURN_RECORDS = 100  # delivered before other tasks have their turn, as many as Faust delivers
POLL_SECONDS = 0.1  # as long does a partition that has room again wait for the others' records


_log = logging.getLogger("faust.transport")  # mode would name these classes' loggers after this module


class Leap(NamedTuple):
    """A fetch position that left the log's range: retention has passed it, or the log ends before it."""

    tp: TP
    position: int
    earliest: int  # where it goes on


class ConsumerThread(AIOKafkaConsumerThread):
    logger = _log

    def __post_init__(self) -> None:
        super().__post_init__()
        self.taken: dict[TP, int] = {}  # offset of the last record that left aiokafka
        self.leaps: deque[Leap] = deque()  # that the consumer has not been told

    def _create_worker_consumer(self, transport: Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        consumer._fetch_min_bytes = FETCH_BYTES
        consumer._isolation_level = cast(FreshApp, self.app).isolation_level
        commit = consumer.commit

        async def commit_with_report(offsets: Mapping[Any, OffsetAndMetadata]) -> None:
            if not offsets:  # a rebalance took all of them meanwhile: aiokafka raises, and Faust crashes
                return
            report = self.consumer.report  # type: ignore[attr-defined]
            await commit({tp: OffsetAndMetadata(place.offset, report) for tp, place in offsets.items()})

        consumer.commit = commit_with_report  # pyright: ignore[reportAttributeAccessIssue]  # Faust names the offsets
        return consumer

    async def _fetch_records(self, *args: Any, **options: Any) -> Mapping[TP, Any]:
        """In this thread, as a position's move and its note here must not be seen apart."""
        try:
            found = await super()._fetch_records(*args, **options)
        except OffsetOutOfRangeError as error:
            await self._begin_at_earliest(error.args[0])
            return {}
        except NoOffsetForPartitionError as error:
            await self._begin_at_earliest(dict.fromkeys(error.args))
            return {}
        self.taken.update({tp: records[-1].offset for tp, records in found.items() if records})
        return found

    async def _begin_at_earliest(self, positions: Mapping[TP, int | None]) -> None:
        """`positions`: offsets that the log does not hold; None: the group has none. Where the broker does not answer,
        the next fetch comes here again."""
        consumer = self._ensure_consumer()
        try:
            earliest = await consumer.beginning_offsets(list(positions))
        except KafkaError as error:
            _log.error("the earliest offset is not known: %r", error)
            return
        for tp, position in positions.items():
            if tp in consumer.assignment():
                consumer.seek(tp, earliest[tp])
                if position is not None:
                    self.taken.pop(tp, None)
                    self.leaps.append(Leap(ensure_TP(tp), position, earliest[tp]))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Faust calls this in every rebalance, because it drops what it has fetched and not handed out by then. Where
        nothing, or 0, is committed, aiokafka leaves a partition at the end of its last fetch, which would lose those
        records: here it begins again at its earliest one. So does a partition whose retention has passed what is
        committed: Faust would count every offset between in a list."""
        return await self.call_thread(self._seek_to_committed)

    async def _seek_to_committed(self) -> Mapping[Any, Any]:
        consumer = self._ensure_consumer()
        committed = dict(await consumer.seek_to_committed())
        self.taken.clear()
        earliest = await consumer.beginning_offsets(list(committed)) if committed else {}
        for tp, offset in committed.items():
            if not offset or offset < earliest[tp]:
                consumer.seek(tp, earliest[tp])
                committed[tp] = None if offset is None else earliest[tp]
        return committed

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's own check takes an open transaction or a pause for a stuck stream; the worker's watch and probes do
        not."""

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._has_room = asyncio.Event()
        self._pressure: dict[TP, tuple[Callable[[], None], Callable[[], None]]] = {}

    @property
    def member(self) -> str:
        """This worker's id in its group; another one after each time that it joins."""
        return self._thread._ensure_consumer()._coordinator.member_id  # type: ignore[attr-defined]

    async def committed(self, tp: TP) -> int | None:
        """The group's offset. Faust exposes it only after its seek, which hides a lost range."""
        thread: Any = self._thread
        return await thread.call_thread(thread._ensure_consumer().committed, tp)

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> bool:
        """Commits these offsets, with the report. False: they were not committed. Raises KafkaError."""
        return not offsets or await self._commit(offsets)

    def begins(self, tp: TP) -> int:
        """The offset below which nothing can come any more, as it is committed or deleted."""
        return self._committed_offset.get(tp) or 0

    def holds_before(self, tp: TP, offset: int) -> bool:
        """Whether a record from before this offset was taken and is not handled yet."""
        return any(held.tp == tp and held.offset < offset and not held.acked for held in self.unacked)

    async def pause(self, paused: bool) -> None:
        """See `ConsumerThread.pause`."""
        await self._thread.call_thread(self._thread.pause, paused)  # type: ignore[attr-defined]

    @property
    def idle(self) -> bool:
        """Whether every record that was taken of an assigned partition is committed."""
        taken = self._thread.taken  # type: ignore[attr-defined]
        return not len(self.unacked) and all(
            taken.get(tp, -1) < (self._committed_offset.get(tp) or 0) for tp in self.assignment()
        )

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Faust makes an event of each record and lets four tasks wait for its delivery, as a full buffer or a
        rebalance may hold it up. A record that nothing holds up is put into its agent's queue here, as the message that
        it is; the others go Faust's way."""
        delivered = 0
        async for tp, message in super().getmany(timeout):
            read = self._read_offset[tp]
            if read is not None and message.offset > read + 1:  # Faust overlooks what is missing after offset 0
                self._read_offset[tp] = message.offset - 1
                await self._add_gap(tp, read + 1, message.offset - 1)
            queue = self._queue_with_room(tp) if read is None or message.offset > read else None
            if queue is None:
                yield tp, message
                continue
            message.incref()
            full, drop = self._pressure.get(tp) or self._pressure_of(tp)
            queue.put_nowait_enhanced(message, on_pressure_high=full, on_pressure_drop=drop)
            self._read_offset[tp] = message.offset
            delivered += 1
            if delivered % _TURN_RECORDS == 0:
                await asyncio.sleep(0)

    def _pressure_of(self, tp: TP) -> tuple[Callable[[], None], Callable[[], None]]:
        """Who is told that a queue with this partition's records is nearly full, and that it has room again."""
        told = ensure_TP(tp)  # aiokafka has a type of its own
        self._pressure[tp] = partial(self.on_buffer_full, told), partial(self.on_buffer_drop, told)
        return self._pressure[tp]

    def _queue_with_room(self, tp: TP) -> Any:
        """Of the one agent that takes this partition's records. None: a record would have to wait."""
        topics = self.app.topics._tp_index.get(tp, ())  # type: ignore[attr-defined]
        if len(topics) != 1 or not self.app.flow_control.is_active():
            return None
        (topic,) = topics
        return None if topic.queue.full() else topic.queue

    def on_buffer_drop(self, tp: TP) -> None:
        super().on_buffer_drop(tp)
        self._has_room.set()

    async def _wait_next_records(self, timeout: float) -> Any:
        """Faust excludes partitions whose buffer is full. It sleeps a second when that is every one, and asks a second
        for records of the others, whatever becomes free meanwhile: batches stood idle for a third of the time."""
        self._has_room.clear()
        if self.flow_active and self.assignment() and not self._get_active_partitions():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_room.wait(), timeout)
            return {}, None
        found = await super()._wait_next_records(POLL_SECONDS)
        leaps = self._thread.leaps  # type: ignore[attr-defined]
        while leaps:  # before the records behind it are delivered
            self._leapt(leaps.popleft())
        return found

    def _leapt(self, leap: Leap) -> None:
        """Faust is to take what lies before `earliest` for committed, as it can come no more. Else it would write every
        offset of the gap into a list; and after a leap back drop the records that it takes for read."""
        tp, position, earliest = leap
        self._committed_offset[tp] = earliest or None
        self._read_offset[tp] = earliest - 1 if earliest else None
        if earliest < position:
            for noted in (self._gap, self._acked, self._acked_index):
                noted.pop(tp, None)
        cast(FreshApp, self.app).on_leap(leap)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def standing(self, timeout_seconds: float) -> dict[TP, tuple[int, int]]:
        """Of each assigned partition how far it is `handled` and its end. Raises TimeoutError, KafkaError or FaustError
        where the broker does not answer."""
        assigned = self.assignment()
        ends = await asyncio.wait_for(self.highwaters(*assigned), timeout_seconds) if assigned else {}
        return {tp: (await asyncio.wait_for(self.handled(tp), timeout_seconds), end) for tp, end in ends.items()}

    async def handled(self, tp: TP) -> int:
        """The offset below which every record of an assigned partition is committed: the committed one, or, where no
        record is on its way, the position of the next fetch."""
        position = await self.position(tp) or 0  # first: what is taken after it is noted before it is looked at
        committed = self._committed_offset.get(tp) or 0
        on_its_way = committed <= self._thread.taken.get(tp, -1)  # type: ignore[attr-defined]
        return committed if on_its_way else max(committed, position)


class FreshTransport(Transport):
    Consumer = FreshConsumer


class FreshApp(faust.App):
    """A Faust app without tables or web server. `on_leap` is called with each leap of a fetch position."""

    logger = logging.getLogger("faust.app")  # mode would name it after a module of ours and so count its lines as ours
    isolation_level: IsolationLevel
    on_leap: Callable[[Leap], None]

    @property
    def fresh_consumer(self) -> FreshConsumer:
        """There from when the app has started."""
        return cast(FreshConsumer, self.consumer)

    async def wait_for_crash(self) -> None:
        await self._crashed.wait()

    def _create_directories(self) -> None:
        """Faust keeps tables and logs there; this app has neither, and the state folder may be read-only."""

    def _new_transport(self) -> FreshTransport:
        return FreshTransport(self.conf.broker_consumer, self)
