"""The end of a backfill: who has an embedding behind its history is encoded again, until a full pass finds nobody.

A worker that was started before a release arrived advances histories without that release's embeddings, also such as
the backfill has just written. A pass asks the store for revisions alone; encoders are loaded only for what it finds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from activity.errors import InfrastructureError, UsageError
from activity.history import Histories
from activity.packing import holds_events
from batch.publish import Journal, open_publisher
from batch.releases import encoders
from batch.settings import BatchSettings
from store.online import OnlineStore
from store.writer import GuardedWriter

_CHUNK_USERS = 1_000
_MAX_PASSES = 20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swept:
    users: int = 0  # encoded again, counted in every pass that found them
    passes: int = 0  # over everybody; the last found nobody, or somebody whom the encoder fails
    encode_failures: int = 0  # embeddings that could not be computed


def sweep(
    settings: BatchSettings, online: OnlineStore, releases: Sequence[str], *, publish: bool, chunk: int = _CHUNK_USERS
) -> Swept:
    """Brings the embeddings of all `releases` to their histories' revisions; `publish`: also onto their topics.

    Raises InfrastructureError where users fall behind as fast as they are encoded, or as the guarded writer and the
    publisher do. A store that cannot list its users is not swept.
    """
    users = failures = 0
    for number in range(1, _MAX_PASSES + 1):
        found = 0
        for behind in _behind(online, releases, chunk):
            found += len(behind)
            failures += _encode_again(settings, online, releases, behind, publish=publish)
        users += found
        _LOG.info("sweep, pass %d: %d users were behind", number, found)
        if not found or failures:
            return Swept(users, number, failures)
    raise InfrastructureError(
        f"after {_MAX_PASSES} passes over all users, embeddings still fall behind their histories",
        hint="restart the workers that were started before the release arrived, then run it again with --resume",
    )


def _behind(online: OnlineStore, releases: Sequence[str], chunk: int) -> Iterator[list[str]]:
    """Users with events whose embedding is missing or of another revision than their history, some at a time."""
    listed = _listed(online)
    while users := list(islice(listed, chunk)):
        behind = [
            user
            for user, stored in zip(users, online.read(users, releases), strict=True)
            if stored.history is not None
            and holds_events(stored.history)
            and any(stored.embedding_revisions[release] != stored.revision for release in releases)
        ]
        if behind:
            yield list(dict.fromkeys(behind))  # a listing may name a user twice


def _listed(online: OnlineStore) -> Iterator[str]:
    """Nobody, after a warning, where Feast cannot tell who is in its store."""
    try:
        yield from online.user_ids()
    except UsageError as error:
        _LOG.warning("%s: whether embeddings are behind their histories was not looked at", error.message)


def _encode_again(
    settings: BatchSettings, online: OnlineStore, releases: Sequence[str], users: list[str], *, publish: bool
) -> int:
    """Returns how many embeddings could not be computed."""
    writer = GuardedWriter(online, list(encoders(settings, releases).values()), history=settings.history)
    journal = Journal(settings.state_folder / "jobs" / "unpublished")
    note = journal.note(users) if publish else None
    nothing = Histories.empty(len(users))
    result = writer.update(users, nothing, as_of_ms=np.zeros(len(users), np.int64))
    if note is not None and (publisher := open_publisher(settings.kafka, online, releases)) is not None:
        with publisher:
            publisher.publish_users(users)
        journal.done(note)
    return result.encode_failures
