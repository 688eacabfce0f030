"""Publish, then look again: the last record per user on `user-embeddings.<release>` ends up equal to the store.

Two writers can hold one user for a while: a worker that was frozen wakes up after its partitions moved, or a batch job
writes beside the stream. The slower one may publish an older row after the newer one. So every writer writes,
publishes, and only then reads the rows again; it publishes again the users whose row another writer has replaced. The
writer of the last record in the topic also reads last, and so sees the other's write. A user without an embedding
(forgotten meanwhile) gets a record without value.

Stream and batch both publish and may not import each other. They compare rows of the store, so this file is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Protocol

from spoor.base.errors import InfrastructureError
from spoor.store.rows import EmbeddingRow, NoEmbedding, Version

_MAX_ROUNDS = 100

Rows = Mapping[str, Sequence[EmbeddingRow | NoEmbedding]]  # release → rows


class Reads(Protocol):
    """What a publication reads of the online store."""

    def read_versions(self, user_ids: Sequence[str], releases: Sequence[str]) -> list[dict[str, Version | None]]: ...
    def read_embeddings(self, release: str, user_ids: Sequence[str]) -> list[EmbeddingRow | None]: ...


def publication(rows: Rows, reads: Reads, *, coming: Callable[[], Set[str]] = frozenset) -> Iterator[Rows]:
    """The rows to send, round by round. The first round reads nothing. The caller asks for the next one when all
    records of this one are acknowledged; it ends when no row has moved. `coming`: users that the same caller publishes
    next, with a later batch.

    Raises what `reads` raises, and InfrastructureError for users that never rest: the last record could be older than
    another writer's."""
    for _ in range(_MAX_ROUNDS):
        yield rows
        rows = _moved_on(rows, reads, coming())
        if not rows:
            return
    user = next(row.user_id for of_release in rows.values() for row in of_release)
    raise InfrastructureError(
        f"user {user!r} was changed by others {_MAX_ROUNDS} times while it was published",
        hint="run fewer writers on the same users",
    )


def _moved_on(published: Rows, reads: Reads, coming: Set[str]) -> Rows:
    """The stored rows of users whose published row has another version, or whose row is gone. A user who is `coming` is
    left out, unless the row is gone: a batch publishes nothing of a user who has no embedding."""
    users = sorted({row.user_id for of_release in published.values() for row in of_release})
    stored = dict(zip(users, reads.read_versions(users, list(published)), strict=True)) if users else {}
    moved: dict[str, list[EmbeddingRow | NoEmbedding]] = {}
    for release, of_release in published.items():
        sent: dict[str, Version | None] = {}
        for row in of_release:
            version = stored[row.user_id][release]
            if version != _version(row) and (version is None or row.user_id not in coming):
                sent[row.user_id] = _version(row)
        found = reads.read_embeddings(release, list(sent)) if sent else []
        rows = [row or NoEmbedding(user) for user, row in zip(sent, found, strict=True)]
        if again := [row for row in rows if _version(row) != sent[row.user_id]]:
            moved[release] = again
    return moved


def _version(row: EmbeddingRow | NoEmbedding) -> Version | None:
    return (row.revision, row.computed_at_ms) if isinstance(row, EmbeddingRow) else None
