"""The end of a backfill: who has an embedding behind its history is encoded again, until a full pass finds nobody.

A worker that was started before a release arrived advances histories without that release's embeddings, also such as
the backfill has just written. A pass asks the store for revisions alone; encoders are loaded only for what it finds.
Only where all workers write the release before the last pass began does its finding last.
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
    users: int = 0  # encoded again, counted in every pass that found them
    passes: int = 0  # over everybody; the last found nobody, or somebody whom the encoder fails
    encode_failures: int = 0  # embeddings that could not be computed
    unwritten: tuple[str, ...] = ()  # releases that some worker did not write: its next event leaves a user behind


def sweep(
    settings: BatchSettings,
    online: OnlineStore,
    releases: Sequence[str],
    *,
    publish: bool,
    unwritten: Callable[[Sequence[str]], Sequence[str]] = lambda releases: (),
    chunk: int = _CHUNK_USERS,
) -> Swept:
    """Brings the embeddings of all `releases` to their histories' revisions; `publish`: also onto their topics.
    `unwritten`: which of them some running worker does not write; asked before each pass.

    With a floor between two encodes (stream.encode_seconds) workers let embeddings wait on purpose: there one pass that
    began when every worker wrote the releases is enough.

    Raises InfrastructureError where users fall behind as fast as they are encoded, or as the guarded writer and the
    publisher do. A store that cannot list its users is not swept.
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
    """Users with events whose embedding is missing or of another revision than their history, some at a time. `aside`:
    who is left out, because their history cannot be read."""
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
    """What it takes to encode, write and publish; made for the first user who is behind. `stack` closes it."""

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
