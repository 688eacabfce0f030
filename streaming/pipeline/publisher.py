"""Publishes embedding rows to `user-embeddings.<release>`, as store/publication.py says, through the worker's producer.

Users of a later batch of this worker are published with that batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any

from spoor.broker.settings import EmbeddingFormat
from spoor.store.publication import Reads, Rows, publication
from spoor.store.rows import record_value

Send = Callable[[str, bytes, bytes | None], Awaitable[Awaitable[object]]]  # (topic, key, value) → acknowledgement


class Publisher:
    """`topics`: release → topic. `send` hands a record to the producer, `in_thread` runs a call off the loop. `coming`:
    users of later batches that this worker publishes after what it is publishing; called off the loop. `form`: how rows
    are written."""

    def __init__(
        self,
        topics: Mapping[str, str],
        *,
        send: Send,
        reads: Reads,
        in_thread: Callable[..., Awaitable[Any]],
        coming: Callable[[], Set[str]] = frozenset,
        form: EmbeddingFormat = "json",
    ) -> None:
        self._topics = topics
        self._form: EmbeddingFormat = form
        self._send = send
        self._reads = reads
        self._in_thread = in_thread
        self._coming = coming

    async def publish(self, rows: Rows) -> int:
        """Returns how many rows had to be published again. Raises what the producer or the store raises, and
        InfrastructureError for users that never rest."""
        rounds, republished = publication(rows, self._reads, coming=self._coming), 0
        await self._send_all(next(rounds))
        while (again := await self._in_thread(next, rounds, None)) is not None:
            republished += sum(map(len, again.values()))
            await self._send_all(again)
        return republished

    async def _send_all(self, rows: Rows) -> None:
        """Returns when every record is acknowledged. Raises the first failure, after all have been answered."""
        waiting = [
            await self._send(self._topics[release], row.user_id.encode(), record_value(row, self._form))
            for release, of_release in rows.items()
            for row in of_release
        ]
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
