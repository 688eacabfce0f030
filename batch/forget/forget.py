"""`spoor forget`: removes a user's past from the online store, the topics, the lake and the offline log, for good.

 1. list the users as forgotten in the lake             from now on no batch job sees their past, nor archives it
 2. per batch of users: note them in the journal; raise the marker in their history rows, through the guarded writer,
    which takes their rows in every other view along; records without value to the embedding topics; close the note
 3. rewrite the lake's files of their buckets, then the offline log's; remove the lists of users that killed jobs left
 4. append the audit record

It may be killed anywhere and run again: each step repeated gives the same result, and the journal's users are published
before anything else by the next job. Workers go on meanwhile: docs/decisions/0007-forgetting.md says why they cannot
bring the past back. Kafka's own log is beyond reach; the answer says how long it keeps what. When that is over,
batch/forget/expire.py removes the markers.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spoor.activity.hashing import buckets_of
from spoor.activity.history import Histories
from spoor.activity.lake import Lake, open_lake
from spoor.activity.rules import entity_id
from spoor.activity.settings import EventSettings
from spoor.base.errors import DataError, EventError, InfrastructureError, UsageError
from spoor.base.handed_in import read_text
from spoor.base.locks import exclusive
from spoor.batch.kafka.publish import Journal, Publisher
from spoor.batch.kafka.retention import Kept, kept_until
from spoor.batch.progress import progress
from spoor.batch.releases import encoders, live_names
from spoor.batch.settings import BatchSettings
from spoor.batch.users.listing import remove_listings
from spoor.feature_repo.settings import IdType
from spoor.store.offline import OfflineLog, open_offline
from spoor.store.online import OnlineStore, open_online
from spoor.store.writer import GuardedWriter

AUDIT = "audit/forget.jsonl"  # in the state folder; forgotten and merged users
BATCH_USERS = 1_000
IDS_BYTES = 128 << 20  # of a file of ids; some ten million
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForgetResult:
    """`lake_rows` and `offline_rows`: removed, or with a dry run, that would be. No ids: this goes into the audit."""

    job: str
    users: int  # asked for, each once
    online: int  # of these: with a history row in the store before
    forgotten_through_ms: int  # events up to and including this time are gone; later ones count
    dry_run: bool
    lake_rows: int = 0
    offline_rows: int = 0
    topics: tuple[str, ...] = ()  # of every release, which get a record without value for each user
    kept: list[Kept] = field(default_factory=list)  # what only Kafka itself can remove, and until when it stays
    seconds: float = 0.0


def run_forget(
    settings: BatchSettings, user_ids: Sequence[str], *, through_ms: int | None = None, dry_run: bool = False
) -> ForgetResult:
    """Forgets the users' events up to and including `through_ms`; by default all that can have been accepted by now,
    those included whose time lies events.max_skew_seconds ahead.

    Raises UsageError (no id, a bad one, a time in the future, Feast not applied), DataError (damaged lake, offline log
    or history), InfrastructureError (store, broker or disk, or a backfill or archive is running).
    """
    started = time.monotonic()
    users = list(dict.fromkeys(user_ids))
    now_ms = time.time_ns() // 1_000_000
    latest = now_ms + settings.events.max_skew_seconds * 1000
    through = latest if through_ms is None else through_ms
    if through > latest:
        raise UsageError(
            f"--through lies {(through - now_ms) / 1000:,.0f} s in the future: the user's next events would be lost",
            hint="leave it out to forget everything up to now",
        )
    check_ids(users, settings.events.max_id_bytes, id_type=settings.events.user_id_type)
    releases = live_names(settings)
    lake, offline = open_lake(settings.lake), open_offline(settings.features)
    with alone(settings, lake), ExitStack() as stack:
        online = open_online(settings.features)
        online.check(releases)
        known = _known(online, users)
        result = ForgetResult(f"forget-{uuid.uuid4().hex[:16]}", len(users), known, through, dry_run)
        if dry_run:
            kept = kept_until(settings.kafka, now_ms=now_ms)
            return replace(
                result,
                lake_rows=_lake_rows(lake, users, through),
                offline_rows=sum(offline.forget(path, users, dry_run=True) for path in offline.user_files()),
                topics=embedding_topics(settings, kept),
                kept=kept,
            )
        _LOG.info("%s: %d users, %d of them online", result.job, len(users), known)
        reach = stack.enter_context(open_reach(settings, lake, online, releases, now_ms=now_ms))
        rows = forget_everywhere(reach, users, through_ms=through)
        result = replace(result, lake_rows=rows[0], offline_rows=rows[1], topics=reach.topics, kept=reach.kept)
        result = replace(result, seconds=time.monotonic() - started)
        append_audit(settings.state_folder / AUDIT, asdict(result))
    return result


@contextmanager
def alone(settings: BatchSettings, lake: Lake) -> Iterator[None]:
    """Nothing else may write lake, offline log or journal meanwhile, or copy what is about to go. Raises
    InfrastructureError if something does."""
    jobs = settings.state_folder / "jobs"
    with (
        exclusive(jobs / "backfill.lock", job="spoor backfill"),
        exclusive(jobs / "export.lock", job="spoor export"),
        exclusive(jobs / "verify.lock", job="spoor verify"),
        exclusive(lake.folder / "_archive.lock", job="spoor archive"),
    ):
        yield


@dataclass(frozen=True)
class Reach:
    """What a deletion writes to, and the topics that only Kafka can clean."""

    lake: Lake
    offline: OfflineLog
    writer: GuardedWriter
    publisher: Publisher
    journal: Journal
    state_folder: Path
    kept: list[Kept]
    topics: tuple[str, ...]  # of every release that was ever published
    unwritten: tuple[str, ...]  # of these: of releases that the writer does not write
    now_ms: int


@contextmanager
def open_reach(
    settings: BatchSettings, lake: Lake, online: OnlineStore, releases: Sequence[str], *, now_ms: int
) -> Iterator[Reach]:
    """In the block of `alone`. What interrupted jobs have left is published first."""
    with Publisher(settings.kafka, online, releases) as publisher:  # makes missing topics
        kept = kept_until(settings.kafka, now_ms=now_ms)
        topics = embedding_topics(settings, kept)
        journal = Journal(settings.state_folder / "jobs" / "unpublished")
        journal.publish_left(publisher)
        loaded = encoders(settings.features, settings.kernels, releases)
        yield Reach(
            lake=lake,
            offline=open_offline(settings.features),
            writer=GuardedWriter(online, list(loaded.values()), history=settings.history),
            publisher=publisher,
            journal=journal,
            state_folder=settings.state_folder,
            kept=kept,
            topics=topics,
            unwritten=tuple(sorted(set(topics).difference(map(settings.kafka.embedding_topic, releases)))),
            now_ms=now_ms,
        )


def forget_everywhere(reach: Reach, users: Sequence[str], *, through_ms: int) -> tuple[int, int]:
    """Steps 1 to 3. Returns the rows removed from the lake and from the offline log."""
    reach.lake.forgotten.add(users, through_ms=through_ms, at_ms=reach.now_ms)
    _forget_online(reach, users, through_ms=through_ms)
    remove_listings(reach.state_folder)
    return _rewrite(reach.lake, reach.offline, users)


def _forget_online(reach: Reach, users: Sequence[str], *, through_ms: int) -> None:
    """Step 2."""
    for start in range(0, len(users), BATCH_USERS):
        part = users[start : start + BATCH_USERS]
        with reach.journal.published(part, reach.publisher):
            reach.writer.update(
                part,
                Histories.empty(len(part)),
                as_of_ms=np.full(len(part), reach.now_ms),
                forget_through=np.full(len(part), through_ms),
                replace_unreadable=True,
            )
            for topic in reach.unwritten:
                reach.publisher.publish_gone(topic, part)


def read_ids(path: Path) -> list[str]:
    """User ids from a text file in UTF-8 of at most IDS_BYTES, one a line, to the letter; empty lines are skipped.
    Raises UsageError."""
    try:
        lines = read_text(path, IDS_BYTES).split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read user ids from `{path}`: {error}", hint="one id a line, in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.startswith("\ufeff"):  # of files that were put together
            raise UsageError(
                f"`{path}`, line {number} begins with a byte order mark, which is no part of an id",
                hint="remove it; an id that truly has one can be given with --user",
            )
    return [line for line in (line.removesuffix("\r") for line in lines) if line]


def check_ids(users: Sequence[str], max_bytes: int, *, id_type: IdType = "string") -> None:
    """Raises UsageError before anything is done: no event can have such an id, so it is a slip of the pen."""
    if not users:
        raise UsageError("no user to forget", hint="name them with --user ID, or in a file with --users-from FILE")
    settings = EventSettings(max_id_bytes=max_bytes, user_id_type=id_type)
    for user in users:
        try:
            entity_id(user, "user_id", settings)
        except EventError as error:
            raise UsageError(
                f"{user!r} is no user id: found {error.found}, expected {error.expected}",
                hint="give ids as the events carry them, one a line in a file",
            ) from None


def _known(online: OnlineStore, users: Sequence[str]) -> int:
    """How many have a history row. Raises UsageError for an id that the entity's type cannot hold."""
    try:
        parts = (users[start : start + BATCH_USERS] for start in range(0, len(users), BATCH_USERS))
        return sum(user.revision > 0 for part in parts for user in online.read(part, []))
    except DataError as error:
        raise UsageError(error.message, hint=error.hint) from None


def embedding_topics(settings: BatchSettings, kept: Sequence[Kept]) -> tuple[str, ...]:
    """Of every release that was ever published, live or not."""
    return tuple(each.topic for each in kept if each.topic.startswith(settings.kafka.embedding_topic_prefix))


def _rewrite(lake: Lake, offline: OfflineLog, users: Sequence[str]) -> tuple[int, int]:
    """Rows removed from the lake and from the offline log."""
    forgotten, buckets = lake.forgotten, sorted(set(buckets_of(users, lake.buckets).tolist()))
    items, files = list(lake.manifest.records()), offline.user_files()
    done: set[str] = set()
    lake_rows = offline_rows = 0
    with progress("forget", total=len(items) + len(files), finished=done.copy):
        for item in items:
            lake_rows += lake.purge(item, buckets, forgotten)
            done.add(f"lake {item}")
        for path in files:
            offline_rows += offline.forget(path, users)
            done.add(str(path.relative_to(offline.folder)))
    offline.recount()
    return lake_rows, offline_rows


def _lake_rows(lake: Lake, users: Sequence[str], through_ms: int) -> int:
    """How many of the lake's events would go."""
    rows = 0
    for bucket in sorted(set(buckets_of(users, lake.buckets).tolist())):
        wanted = pa.array(users, pa.string())
        for table in lake.batches(bucket=bucket, to_ms=through_ms + 1, columns=["user_id"]):
            rows += pc.sum(pc.is_in(table["user_id"], value_set=wanted)).as_py() or 0
    return rows


def append_audit(path: Path, record: Mapping[str, Any]) -> None:
    """Appends what was done, when, to how many: nothing of whom. Raises InfrastructureError."""
    line = {"finished_at": datetime.now(UTC).isoformat(timespec="seconds"), **record}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InfrastructureError(
            f"everything is done, but `{path}` cannot be written: {error.strerror or error}",
            hint="mend the folder and run the command again: the audit record is then appended",
        ) from error
