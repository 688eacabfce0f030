"""A worker's side of streaming/orders/control.py: it follows the orders of its group and reports what it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from spoor.base.errors import DataError, SpoorError
from spoor.streaming.orders.control import Orders, Report, read_orders

if TYPE_CHECKING:
    from faust.types import TP

    from spoor.streaming.kafka.transport import FreshApp, FreshConsumer
    from spoor.streaming.pipeline.processor import BatchProcessor

log = logging.getLogger(__name__)


class Steering:
    """Of one worker. `begin` comes before the worker joins its group, then `follow` every second or so, and `assigned`
    in each rebalance."""

    def __init__(self, app: FreshApp, processor: BatchProcessor) -> None:
        self.unreported = False  # partitions have come for which this worker has not committed its report
        self._app = app
        self._processor = processor
        self._settings = processor.settings
        self._reload_id = ""  # of the last order to reload that was followed
        self._problem = ""  # why it could not be
        self._unreadable = ""  # told once

    @property
    def _consumer(self) -> FreshConsumer:
        return self._app.fresh_consumer

    async def begin(self) -> None:
        """Notes the orders of this moment: what is opened from now on is as new as they ask for."""
        orders = await self._orders(Orders())
        self._reload_id = orders.reload
        self._note_paused(orders.paused)

    async def assigned(self, assigned: Collection[TP]) -> None:
        """Partitions that come while the worker is paused are paused before anything is taken from them."""
        self.unreported = bool(assigned)
        if self._processor.health.paused:
            await self._consumer.pause(True)

    async def follow(self) -> None:
        """Reloads, pauses or goes on as ordered, then reports with the committed offsets if anything has changed."""
        before = Orders(self._processor.health.paused, self._reload_id)
        orders = await self._orders(before)
        if orders.reload not in ("", self._reload_id):
            await self._reload(orders.reload)
        await self._pause(orders.paused)
        await self._report()

    async def _orders(self, otherwise: Orders) -> Orders:
        """What stands in the file; where it cannot be read, `otherwise`."""
        settings = self._settings
        try:
            folder, group = settings.features.releases_folder, settings.stream.group
            orders = await self._processor.reads.run(read_orders, folder, group)
        except DataError as error:
            if error.message != self._unreadable:
                log.error("the worker goes on as before: %s", error.message)
                self._unreadable = error.message
            return otherwise
        self._unreadable = ""
        return orders

    async def _reload(self, order: str) -> None:
        try:
            releases = await self._processor.reload()
            self._problem = ""
            log.info("taken up: %s", ", ".join(releases))
        except Exception as error:  # whatever a new release may provoke, those at work stay
            text = error.message if isinstance(error, SpoorError) else f"{type(error).__name__}: {error}"
            self._problem = " ".join(text.split())
            log.error("the worker goes on with the releases that it has: %s", self._problem)
        self._reload_id = order

    async def _pause(self, paused: bool) -> None:
        if paused != self._processor.health.paused:
            self._note_paused(paused)
            await self._consumer.pause(paused)

    def _note_paused(self, paused: bool) -> None:
        processor = self._processor
        if paused != processor.health.paused:
            log.info("paused: no events are taken" if paused else "resumed")
        processor.health.paused = paused
        processor.metrics.paused.set(paused)

    async def _report(self) -> None:
        """Commits anew what is committed, for the metadata's sake; no batch is committed meanwhile."""
        processor, consumer = self._processor, self._consumer
        report = Report(
            member=consumer.member,
            releases=processor.stores.releases,
            reload=self._reload_id,
            paused=processor.health.paused and consumer.idle,
            problem=self._problem,
            pinned=bool(self._settings.stream.releases),
        ).text()
        if report == consumer.report and not self.unreported:
            return
        consumer.report = report
        self.unreported = False  # partitions may come while this one is on its way
        async with processor.publishing:
            try:
                offsets = await self._committed()
                deadline = self._settings.kafka.request_timeout_seconds  # batches wait meanwhile
                self.unreported |= not await asyncio.wait_for(consumer.commit_offsets(offsets), deadline)
            except (KafkaError, TimeoutError) as error:
                self.unreported = True
                log.warning("the worker's report could not be committed, it is tried again: %r", error)

    async def _committed(self) -> dict[TP, int]:
        """The group's offset of each assigned partition; where it has none, that of the earliest record, with which it
        begins. Raises KafkaError or TimeoutError."""
        timeout = self._settings.kafka.request_timeout_seconds
        offsets: dict[TP, int] = {}
        for tp in self._consumer.assignment():
            offset = await asyncio.wait_for(self._consumer.committed(tp), timeout)
            if offset is None:
                offset = (await asyncio.wait_for(self._consumer.earliest_offsets(tp), timeout))[tp]
            begins = self._consumer.begins(tp)
            if begins > offset and self._consumer.holds_before(tp, begins):
                # Retention has passed records that are on their way to the store. Behind this offset a crash would
                # lose them without a line: the next worker counts what lies between the two.
                self.unreported = True
                begins = offset
            offsets[tp] = max(offset, begins)
        return offsets
