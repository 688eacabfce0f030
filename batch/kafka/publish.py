"""Publishes the rows that a batch job changed online on `user-embeddings.<release>`: each user's last record equals the
row in the store.

Two cases could break this. Another writer may replace a row between our read and our record; so the rows are read again
after every send (store/publication.py). A job may die between write and record, and a retry would see no change; so the
users of a write are first noted in a journal, and the next run publishes the journal before anything else.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from spoor.base.errors import InfrastructureError
from spoor.base.files import writing
from spoor.batch.settings import BatchSettings
from spoor.broker.admin import Admin
from spoor.broker.producer import Producer, Record
from spoor.broker.settings import KafkaSettings
from spoor.store.online import OnlineStore
from spoor.store.publication import Rows, publication
from spoor.store.rows import NoEmbedding, record_value

_READ_USERS = 1_000
_LOG = logging.getLogger(__name__)


class Publisher:
    """A producer for the embedding topics of `releases`; creates missing ones (compacted).

    Raises InfrastructureError if the broker does not answer.
    """

    def __init__(self, kafka: KafkaSettings, online: OnlineStore, releases: Sequence[str]) -> None:
        self._kafka = kafka
        self._online = online
        self._releases = list(releases)
        topics = {kafka.embedding_topic(release): kafka.embedding_topic_config for release in releases}
        with _publishing():
            with Admin(kafka) as admin:
                present = admin.topics()
                admin.create({name: config for name, config in topics.items() if name not in present})
            self._producer = Producer(kafka, linger_ms=20, compression_type=None)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._producer.close()

    def publish(self, rows: Rows) -> int:
        """Sends the rows and waits for the broker; sends again, with their current rows, users that another writer has
        changed meanwhile. Returns the number of users. Raises InfrastructureError."""
        for again in publication(rows, self._online):
            self._send(again)
        return len({row.user_id for of_release in rows.values() for row in of_release})

    def publish_users(self, user_ids: Sequence[str]) -> int:
        """Publishes the stored rows of these users; a tombstone for each user without an embedding."""
        for start in range(0, len(user_ids), _READ_USERS):
            part = user_ids[start : start + _READ_USERS]
            found = {release: self._online.read_embeddings(release, part) for release in self._releases}
            self.publish(
                {
                    release: [row or NoEmbedding(user) for user, row in zip(part, rows, strict=True)]
                    for release, rows in found.items()
                }
            )
        return len(user_ids)

    def publish_gone(self, topic: str, user_ids: Sequence[str]) -> None:
        """Sends tombstones to the topic of a release that is no longer written."""
        with _publishing():
            self._producer.deliver(Record(topic, user.encode(), None) for user in user_ids)

    def _send(self, rows: Rows) -> None:
        with _publishing():
            self._producer.deliver(
                Record(
                    self._kafka.embedding_topic(release),
                    row.user_id.encode(),
                    record_value(row, self._kafka.embedding_format),
                )
                for release, part in rows.items()
                for row in part
            )


def open_publisher(kafka: KafkaSettings, online: OnlineStore, releases: Sequence[str]) -> Publisher | None:
    """Returns None, after a warning, if the embedded broker is configured and not running: the journal then keeps the
    users. Raises InfrastructureError if another broker does not answer."""
    try:
        return Publisher(kafka, online, releases)
    except InfrastructureError as error:
        if not kafka.embedded:
            raise
        _LOG.warning("%s; changed rows will be published by the next backfill that finds it running", error.message)
        return None


def publish_left(settings: BatchSettings, online: OnlineStore, releases: Sequence[str]) -> None:
    """Publishes the users that interrupted jobs or lost tries left in the journal, if the broker is running."""
    journal = Journal(settings.state_folder / "jobs" / "unpublished")
    if journal.left and (publisher := open_publisher(settings.kafka, online, releases)) is not None:
        with publisher:
            journal.publish_left(publisher)


class Journal:
    """Users whose rows are being changed or have changed, and whose records are not confirmed: one file per write.

    A note is locked while its writer lives, so no other job publishes and removes it too early: a cluster's task may
    still run when its driver is dead and the next job has started. A file system without locks does not protect notes;
    a note that is missing at the end was published by another job.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def noted(self, user_ids: Sequence[str]) -> Iterator[Note]:
        """For a block that changes these users and calls `done` once their records are sent; otherwise the note remains
        for the next job. Raises InfrastructureError."""
        path = self._folder / f"{uuid.uuid4().hex}.json"
        with writing(path):
            descriptor = self._locked_file(path, json.dumps(list(user_ids)).encode())
        try:
            yield Note(path)
        finally:
            os.close(descriptor)

    @contextmanager
    def published(self, user_ids: Sequence[str], publisher: Publisher | None) -> Iterator[None]:
        """For a block that changes these users: publishes their stored rows after it. If this fails, or without a
        publisher, the note remains for the next job."""
        with self.noted(user_ids) as note:
            yield
            if publisher is not None:
                publisher.publish_users(user_ids)
                note.done()

    @property
    def left(self) -> bool:
        """Whether the journal holds any note, finished or not."""
        return self._folder.is_dir() and any(self._folder.iterdir())

    def publish_left(self, publisher: Publisher) -> int:
        """Publishes the users that interrupted jobs left. Returns their number."""
        users = 0
        for unfinished in self._folder.glob(".*"):
            with _taken(unfinished) as data:
                if data is not None:
                    unfinished.unlink(missing_ok=True)
        for path in sorted(self._folder.glob("[!.]*.json")):
            with _taken(path) as data:
                if data is not None:
                    users += publisher.publish_users(json.loads(data))
                    path.unlink(missing_ok=True)
        if users:
            _LOG.info("published %d users that an interrupted job had left unpublished", users)
        return users

    def _locked_file(self, path: Path, data: bytes) -> int:
        """Writes and syncs a file that is locked before its rename; returns its descriptor. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        while True:
            descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                _lock(descriptor)
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(data)
                os.fsync(descriptor)
                os.rename(unfinished, path)
                return descriptor
            except FileNotFoundError:  # another job removed it before it was locked
                os.close(descriptor)
            except BaseException:
                os.close(descriptor)
                unfinished.unlink(missing_ok=True)
                raise


@dataclass(frozen=True)
class Note:
    path: Path

    def done(self) -> None:
        self.path.unlink(missing_ok=True)


def _lock(descriptor: int) -> bool:
    """False if a living process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # for example on a network file system
        _LOG.debug("no locks: %s", error)
    return True


@contextmanager
def _taken(path: Path) -> Iterator[bytes | None]:
    """The contents of a note, locked for the block; None if its writer lives or another job has removed it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        with open(descriptor, "rb", closefd=False) as file:
            yield file.read() if _lock(descriptor) and os.fstat(descriptor).st_nlink else None
    finally:
        os.close(descriptor)


@contextmanager
def _publishing() -> Iterator[None]:
    """Adds to errors that publishing failed, and how to run without it."""
    try:
        yield
    except InfrastructureError as error:
        raise InfrastructureError(
            f"cannot publish: {error.message}", hint=f"{error.hint}; `spoor backfill --no-publish` does without"
        ) from error
