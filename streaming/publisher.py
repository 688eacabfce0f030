"""Publishes embedding rows to `user-embeddings.<release>` so that the last record per user ends up equal to the store.

Two workers can hold one user for a while (a worker that was frozen wakes up after its partitions moved): the slower one
may publish an older row after the newer one. So rows are read again once their publication is acknowledged, and who
moved on meanwhile is published again, by whoever finds it. Each of the two publishes first and reads afterwards, so the
later of them sees the other's write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from store.rows import EmbeddingRow, embedding_row_to_json

log = logging.getLogger(__name__)

_MAX_ROUNDS = 5

Rows = Mapping[str, Sequence[EmbeddingRow]]  # release → rows
Versions = dict[tuple[str, str], tuple[int, int]]  # (release, user) → (revision, computed at)
Send = Callable[[str, bytes, bytes], Awaitable[Awaitable[object]]]  # (topic, key, value) → acknowledgement


class EmbeddingReads(Protocol):
    def read_embeddings(self, release: str, user_ids: Sequence[str]) -> list[EmbeddingRow | None]: ...


class Publisher:
    """`topics`: release → topic. `send` hands a record to the producer, `in_thread` runs a call off the loop."""

    def __init__(
        self,
        topics: Mapping[str, str],
        *,
        send: Send,
        reads: EmbeddingReads,
        in_thread: Callable[..., Awaitable[list[EmbeddingRow | None]]],
    ) -> None:
        self._topics = topics
        self._send = send
        self._reads = reads
        self._in_thread = in_thread

    async def publish(self, rows: Rows) -> int:
        """Returns how many rows had to be published again. Raises what the producer or the store raises."""
        republished = 0
        for _ in range(_MAX_ROUNDS):
            await self._send_all(rows)
            rows = moved(rows, await self._read_again(rows))
            if not any(rows.values()):
                return republished
            republished += sum(map(len, rows.values()))
        # Every round somebody else wrote these users, and that writer publishes after its write too.
        log.warning("rows of %d users keep moving; their other writer publishes them", len(_users(rows)))
        return republished

    async def _send_all(self, rows: Rows) -> None:
        await send_all(
            self._send,
            (
                (self._topics[release], row.user_id.encode(), embedding_row_to_json(row))
                for release, of_release in rows.items()
                for row in of_release
            ),
        )

    async def _read_again(self, rows: Rows) -> dict[str, list[EmbeddingRow | None]]:
        return {
            release: await self._in_thread(self._reads.read_embeddings, release, [row.user_id for row in of_release])
            for release, of_release in rows.items()
            if of_release
        }


async def send_all(send: Send, records) -> None:
    """Hands every record (topic, key, value) to the producer and waits until all are acknowledged. Raises the first
    failure, after all have been answered."""
    waiting = [await send(topic, key, value) for topic, key, value in records]
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def moved(published: Rows, found: Mapping[str, Sequence[EmbeddingRow | None]]) -> dict[str, list[EmbeddingRow]]:
    """The rows now in the store of users whose published row is not that one. A user that is gone (forgotten
    meanwhile) is left to whoever removed it."""
    return {
        release: [
            now
            for row, now in zip(of_release, found.get(release, []), strict=True)
            if now is not None and (now.revision, now.computed_at_ms) != (row.revision, row.computed_at_ms)
        ]
        for release, of_release in published.items()
        if of_release
    }


def _users(rows: Rows) -> set[str]:
    return {row.user_id for of_release in rows.values() for row in of_release}
