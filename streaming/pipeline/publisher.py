"""Publishes embedding rows to `user-embeddings.<release>` so that the last record per user ends up equal to the store.

Two workers can hold one user for a while (a worker that was frozen wakes up after its partitions moved): the slower one
may publish an older row after the newer one. So revisions are read again once the publication is acknowledged, and who
moved on meanwhile is published again, by whoever finds it. Every worker writes, publishes, and only then reads: the one
whose record comes last in the topic also reads last, and sees the other's write. Who has no embedding any more (was
forgotten meanwhile) gets a record without value.

Who moved on because this worker has written a later batch is left to that batch, which is published next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Protocol

from spoor.base.errors import InfrastructureError
from spoor.broker.settings import EmbeddingFormat
from spoor.store.rows import EmbeddingRow, NoEmbedding, StoredUser, record_value

_MAX_ROUNDS = 100

Rows = Mapping[str, Sequence[EmbeddingRow | NoEmbedding]]  # release → rows
Send = Callable[[str, bytes, bytes | None], Awaitable[Awaitable[object]]]  # (topic, key, value) → acknowledgement


class Reads(Protocol):
    """What the publisher reads of the online store."""

    def read(self, user_ids: Sequence[str], releases: Sequence[str]) -> list[StoredUser]: ...
    def read_embeddings(self, release: str, user_ids: Sequence[str]) -> list[EmbeddingRow | None]: ...


class Publisher:
    """`topics`: release → topic. `send` hands a record to the producer, `in_thread` runs a call off the loop. `coming`:
    users of later batches that this worker publishes after what it is publishing. `form`: how rows are written."""

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
        InfrastructureError for users that never rest: the last record could be older than another writer's."""
        republished = 0
        for _ in range(_MAX_ROUNDS):
            await self._send_all(rows)
            rows = await self._in_thread(moved_on, rows, self._reads, self._coming())
            if not rows:
                return republished
            republished += sum(map(len, rows.values()))
        user = next(row.user_id for of_release in rows.values() for row in of_release)
        raise InfrastructureError(
            f"user {user!r} was changed by others {_MAX_ROUNDS} times while it was published",
            hint="run fewer writers on the same users",
        )

    async def _send_all(self, rows: Rows) -> None:
        records = (
            (self._topics[release], row.user_id.encode(), record_value(row, self._form))
            for release, of_release in rows.items()
            for row in of_release
        )
        await send_all(self._send, records)


async def send_all(send: Send, records: Iterable[tuple[str, bytes, bytes | None]]) -> None:
    """Hands every record (topic, key, value) to the producer and waits until all are acknowledged. Raises the first
    failure, after all have been answered."""
    waiting = [await send(topic, key, value) for topic, key, value in records]
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def moved_on(published: Rows, reads: Reads, coming: Set[str]) -> dict[str, list[EmbeddingRow | NoEmbedding]]:
    """What the store now holds of users whose published row has another revision, or whose row is gone. Who is `coming`
    is left out, except where the row is gone: a batch publishes nothing of a user who has no embedding."""
    users = sorted({row.user_id for of_release in published.values() for row in of_release})
    stored = dict(zip(users, reads.read(users, list(published)), strict=True)) if users else {}
    moved: dict[str, list[EmbeddingRow | NoEmbedding]] = {}
    for release, of_release in published.items():
        behind = []
        for row in of_release:
            revision = stored[row.user_id].embedding_revisions[release]
            if revision != _revision(row) and (revision is None or row.user_id not in coming):
                behind.append(row.user_id)
        found = reads.read_embeddings(release, behind) if behind else []
        if found:
            moved[release] = [row or NoEmbedding(user) for user, row in zip(behind, found, strict=True)]
    return moved


def _revision(row: EmbeddingRow | NoEmbedding) -> int | None:
    return row.revision if isinstance(row, EmbeddingRow) else None
