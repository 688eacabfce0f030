"""Puts the rows that a batch job changed online onto `user-embeddings.<release>`: each user's last record equals the
store.

Two things could break that. Another writer may replace a row between our read and our record: the rows are read again
after every send (store/publication.py). And a job may die between write and record, after which nothing would look
changed: so the users of a write are noted in a journal first, and the next run publishes what is still in the journal
before anything else.
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
    """A producer for the embedding topics of `releases`, which it creates (compacted) where they are missing.

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
        """Sends the rows and waits for the broker; repeats with the present rows of users whom another writer has
        changed meanwhile. Returns the number of users. Raises InfrastructureError."""
        for again in publication(rows, self._online):
            self._send(again)
        return len({row.user_id for of_release in rows.values() for row in of_release})

    def publish_users(self, user_ids: Sequence[str]) -> int:
        """Publishes what the store holds of these users; who has no embedding gets a record without value."""
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
        """Records without value to the topic of a release that is not written any more."""
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
    """None, after a warning, where the embedded broker is meant and is not running: then the journal keeps what is to
    be published. A configured broker that does not answer raises InfrastructureError."""
    try:
        return Publisher(kafka, online, releases)
    except InfrastructureError as error:
        if not kafka.embedded:
            raise
        _LOG.warning("%s; changed rows will be published by the next backfill that finds it running", error.message)
        return None


def publish_left(settings: BatchSettings, online: OnlineStore, releases: Sequence[str]) -> None:
    """Publishes what interrupted jobs, or the lost tries of one, have left in the journal, if the broker is there."""
    journal = Journal(settings.state_folder / "jobs" / "unpublished")
    if journal.left and (publisher := open_publisher(settings.kafka, online, releases)) is not None:
        with publisher:
            journal.publish_left(publisher)


class Journal:
    """Users whose rows are about to change, or have changed, and whose records are not known to be out: one file per
    write.

    A note is locked while its writer lives, so no other job publishes it too early and removes it: a task of a cluster
    may work on when its driver is dead and the next job has begun. A file system without locks protects no note; one
    that is gone at the end was published by somebody.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def noted(self, user_ids: Sequence[str]) -> Iterator[Note]:
        """The block changes these users, and calls `done` when their records are out. Else the note stays for the next
        job. Raises InfrastructureError."""
        path = self._folder / f"{uuid.uuid4().hex}.json"
        with writing(path):
            descriptor = self._locked_file(path, json.dumps(list(user_ids)).encode())
        try:
            yield Note(path)
        finally:
            os.close(descriptor)

    @contextmanager
    def published(self, user_ids: Sequence[str], publisher: Publisher | None) -> Iterator[None]:
        """The block changes these users; after it, what the store then holds of them is published. Where it fails, or
        there is no publisher, the note stays for the next job."""
        with self.noted(user_ids) as note:
            yield
            if publisher is not None:
                publisher.publish_users(user_ids)
                note.done()

    @property
    def left(self) -> bool:
        """Whether any note, or a part of one, is there."""
        return self._folder.is_dir() and any(self._folder.iterdir())

    def publish_left(self, publisher: Publisher) -> int:
        """Publishes what interrupted jobs left. Returns the number of users."""
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
        """The descriptor of a whole, synced file that was locked before it got its name. Raises OSError."""
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
            except FileNotFoundError:  # another job has cleaned it up before it was locked
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
    """False where a living process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # of a network file system, say
        _LOG.debug("no locks: %s", error)
    return True


@contextmanager
def _taken(path: Path) -> Iterator[bytes | None]:
    """What a note holds, locked for the block; None where its writer lives, or somebody else has removed it."""
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
    """Errors name what fails, and the way without it."""
    try:
        yield
    except InfrastructureError as error:
        raise InfrastructureError(
            f"cannot publish: {error.message}", hint=f"{error.hint}; `spoor backfill --no-publish` does without"
        ) from error
