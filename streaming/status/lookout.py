"""Polls broker and store for lag, liveness and lost offsets; reports what a rebalance assigned."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError
from faust.exceptions import FaustError

from spoor.base.errors import SpoorError
from spoor.streaming.records.core import lost_range
from spoor.streaming.status.health import Health
from spoor.streaming.status.metrics import StreamMetrics

if TYPE_CHECKING:
    from faust.types import TP

    from spoor.streaming.kafka.transport import FreshApp, Leap

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0  # for a server that is asked how it is


class Lookout:
    """`read_store`: any read, off the loop. `timeout_seconds`: of a request to the broker in a rebalance."""

    def __init__(
        self,
        app: FreshApp,
        health: Health,
        metrics: StreamMetrics,
        *,
        read_store: Callable[[], Awaitable[object]],
        timeout_seconds: float,
    ) -> None:
        self._app = app
        self._health = health
        self._metrics = metrics
        self._read_store = read_store
        self._timeout_seconds = timeout_seconds
        self._earliest: dict[TP, int] = {}  # of assigned partitions, when they were assigned
        self._counted: dict[TP, int] = {}  # the offset before which what is lost has been counted

    async def assigned(self, assigned: Collection[TP]) -> None:
        """After a rebalance. Also reports what retention took from these partitions before it was read."""
        partitions = sorted(tp.partition for tp in assigned)
        self._metrics.partitions.set(len(partitions))
        log.info("partitions %s", " ".join(map(str, partitions)) or "none")
        self._health.assigned(partitions)
        self._earliest = {}
        try:
            await self._report_lost(assigned)
        except (KafkaError, TimeoutError) as error:
            log.warning("cannot check whether retention has deleted unread events: %r", error)

    def leapt(self, leap: Leap) -> None:
        """Tells what a fetch position has passed over while its partition stayed assigned."""
        tp, position, earliest = leap
        if earliest < position:
            log.error(
                "%s partition %d ends before offset %d, which is read next: it was truncated, or the topic was made "
                "again; it is read from offset %d on",
                tp.topic, tp.partition, position, earliest,
            )  # fmt: skip
            self._counted.pop(tp, None)
        else:
            self._lost(tp, position, earliest)

    async def look(self) -> None:
        """Asks broker and store how they are and where the partitions stand."""
        self._health.looked()
        try:
            await self._look_at_partitions()
            self._health.answered("broker")
        except (TimeoutError, KafkaError, FaustError):
            self._health.silent("broker", "does not answer")
        await self.ask_store()

    async def ask_store(self) -> None:
        try:
            await asyncio.wait_for(self._read_store(), _ANSWER_SECONDS)
            self._health.answered("store")
        except TimeoutError:
            self._health.silent("store", f"has not answered for {_ANSWER_SECONDS:.0f} s")
        except SpoorError:
            self._health.silent("store", "does not answer")

    async def _look_at_partitions(self) -> None:
        """Raises TimeoutError, KafkaError or FaustError where the broker does not answer."""
        standing = await self._app.fresh_consumer.standing(_ANSWER_SECONDS)
        self._health.positions(
            {tp.partition: max(handled, self._earliest.get(tp, 0)) for tp, (handled, _) in standing.items()},
            {tp.partition: end for tp, (_, end) in standing.items()},
        )

    async def _report_lost(self, assigned: Collection[TP]) -> None:
        if not assigned:
            return
        consumer = self._app.fresh_consumer
        earliest = await asyncio.wait_for(consumer.earliest_offsets(*assigned), self._timeout_seconds)
        self._earliest = dict(earliest)
        for tp in assigned:
            committed = await asyncio.wait_for(consumer.committed(tp), self._timeout_seconds)
            lost = lost_range(committed=committed, earliest=earliest[tp])
            if lost is not None:
                self._lost(tp, *lost)

    def _lost(self, tp: TP, start: int, end: int) -> None:
        """Counts offsets [start, end) that retention deleted, those that were counted before left out."""
        start = max(start, self._counted.get(tp, 0))
        if start >= end:
            return
        self._counted[tp] = end
        self._metrics.lost.add(end - start)
        log.error(
            "retention deleted %d unread events: %s partition %d offsets %d to %d; restore them with "
            "`spoor backfill` if the lake has them, and raise the topic's retention",
            end - start, tp.topic, tp.partition, start, end - 1,
        )  # fmt: skip
