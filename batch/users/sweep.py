"""The last step of a backfill: encodes stale embeddings again until a full pass finds none.

Workers started before a release keep writing histories without its embeddings, also for users just backfilled. A pass
reads only revisions from the store; encoders are loaded only if it finds stale embeddings. Embeddings stay fresh only
if all workers wrote the release before the last pass began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import numpy as np

from spoor.activity.history import Histories
from spoor.base.errors import InfrastructureError
from spoor.batch.kafka.publish import Journal, open_publisher
from spoor.batch.releases import encoders
from spoor.batch.settings import BatchSettings
from spoor.store.online import OnlineStore
from spoor.store.writer import GuardedWriter, UpdateResult

_CHUNK_USERS = 1_000
_MAX_PASSES = 20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swept:
    users: int = 0  # encoded again, counted once per pass
    passes: int = 0  # over all users
    encode_failures: int = 0  # embeddings that could not be computed
    unwritten: tuple[str, ...] = ()  # releases that some worker does not write: they get stale with its next event


def sweep(
    settings: BatchSettings,
    online: OnlineStore,
    releases: Sequence[str],
    *,
    publish: bool,
    unwritten: Callable[[Sequence[str]], Sequence[str]] = lambda releases: (),
    chunk: int = _CHUNK_USERS,
) -> Swept:
    """Encodes stale embeddings of all `releases` again; `publish`: also sends them to their topics. `unwritten` returns
    the releases that some running worker does not write; it is called before each pass.

    With a rate limit (stream.encode_seconds) workers delay embeddings on purpose: then one pass that began when every
    worker wrote the releases is enough.

    Raises InfrastructureError if embeddings get stale as fast as they are encoded, and as the guarded writer and the
    publisher do. Does not sweep a store that cannot list its users.
    """
    if not online.lists_users:
        _LOG.warning("the online store cannot list its users: embeddings behind their histories were not looked for")
        return Swept()
    users = failures = 0
    aside: set[str] = set()
    with ExitStack() as stack:
        writing: _Writing | None = None
        for number in range(1, _MAX_PASSES + 1):
            found, left = 0, tuple(unwritten(releases))
            for behind in _behind(online, releases, chunk, aside):
                writing = writing or _Writing(settings, online, releases, stack, publish=publish)
                result = writing.encode_again(behind)
                failures += result.encode_failures
                aside.update(result.set_aside)
                found += len(behind) - len(result.set_aside)
            users += found
            _LOG.info("sweep, pass %d: %d users were behind", number, found)
            workers_go_on = settings.stream.encode_seconds > 0 and not left
            if not found or failures or workers_go_on:
                return Swept(users, number, failures, left)
    raise InfrastructureError(
        f"after {_MAX_PASSES} passes over all users, embeddings still fall behind their histories",
        hint="`spoor stream status` shows which workers do not write a release: `spoor stream reload` lets them take "
        "it up, those that were started for certain releases must be started again; then run this with --resume",
    )


def _behind(online: OnlineStore, releases: Sequence[str], chunk: int, aside: Collection[str]) -> Iterator[list[str]]:
    """Chunks of users with events whose embedding is missing or stale. Leaves out `aside`, users with an unreadable
    history."""
    for users in online.user_chunks(chunk):
        behind = [
            user
            for user, stored in zip(users, online.read(users, releases), strict=True)
            if user not in aside
            and stored.has_events
            and any(have != stored.revision for have in stored.embedding_revisions.values())
        ]
        if behind:
            yield list(dict.fromkeys(behind))  # a listing may name a user twice


class _Writing:
    """Encodes, writes and publishes; created when the first stale user is found. `stack` closes the publisher."""

    def __init__(
        self, settings: BatchSettings, online: OnlineStore, releases: Sequence[str], stack: ExitStack, *, publish: bool
    ) -> None:
        self._writer = GuardedWriter(
            online, list(encoders(settings.features, settings.kernels, releases).values()), history=settings.history
        )
        self._journal = Journal(settings.state_folder / "jobs" / "unpublished") if publish else None
        self._publisher = open_publisher(settings.kafka, online, releases) if publish else None
        if self._publisher is not None:
            stack.enter_context(self._publisher)

    def encode_again(self, users: list[str]) -> UpdateResult:
        noted = nullcontext() if self._journal is None else self._journal.published(users, self._publisher)
        with noted:
            nothing = Histories.empty(len(users))
            return self._writer.update(users, nothing, as_of_ms=np.zeros(len(users), np.int64))
