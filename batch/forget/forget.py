"""`spoor forget`: permanently deletes users' events and rows from the online store, the topics, the lake and the
offline log.

 1. list the users as deleted in the lake; from then on batch jobs neither read nor archive their earlier events
 2. per batch of users: note them in the journal; set the cut-off in their history rows through the guarded writer,
    whose write also clears their rows in every other view; send tombstones to the embedding topics; remove the note
 3. rewrite the lake's files of their buckets, then the offline log's; remove user lists of killed jobs
 4. append the audit record

The job can be killed at any point and run again: every step is idempotent, and the next job first publishes the users
in the journal. Workers keep running; docs/decisions/0007-forgetting.md says why they cannot restore deleted events.
Records in Kafka's log remain; the result says until when. After that, batch/forget/expire.py removes the markers.
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

AUDIT = "audit/forget.jsonl"  # in the state folder; for forget, merge-users and expire
BATCH_USERS = 1_000
IDS_BYTES = 128 << 20  # limit of a file of ids; about ten million ids
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForgetResult:
    """In a dry run, `lake_rows` and `offline_rows` count what would be removed. Holds no ids: it goes into the
    audit."""

    job: str
    users: int  # distinct users requested
    online: int  # of these: had a history row in the store
    forgotten_through_ms: int  # cut-off: events up to and including this time are deleted; later ones are kept
    dry_run: bool
    lake_rows: int = 0
    offline_rows: int = 0
    topics: tuple[str, ...] = ()  # embedding topics of every release; each gets a tombstone per user
    kept: list[Kept] = field(default_factory=list)  # topics whose records only Kafka can remove, and until when
    seconds: float = 0.0


def run_forget(
    settings: BatchSettings, user_ids: Sequence[str], *, through_ms: int | None = None, dry_run: bool = False
) -> ForgetResult:
    """Deletes the users' events up to and including `through_ms`; default: now plus events.max_skew_seconds, the latest
    event time that can have been accepted.

    Raises UsageError (no id, a bad id, a time after that default, Feast not applied), DataError (damaged lake, offline
    log or history), InfrastructureError (store, broker or disk, or another job of `alone` is running).
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
    """Holds the locks of all jobs that write the lake, the offline log or the journal, or copy rows. Raises
    InfrastructureError if one of them is running."""
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
    """Everything that a deletion writes to, and the topics whose records only Kafka can remove."""

    lake: Lake
    offline: OfflineLog
    writer: GuardedWriter
    publisher: Publisher
    journal: Journal
    state_folder: Path
    kept: list[Kept]
    topics: tuple[str, ...]  # embedding topics of every release ever published
    unwritten: tuple[str, ...]  # of these: topics of releases that the writer does not write
    now_ms: int


@contextmanager
def open_reach(
    settings: BatchSettings, lake: Lake, online: OnlineStore, releases: Sequence[str], *, now_ms: int
) -> Iterator[Reach]:
    """Call it within `alone`. First publishes what interrupted jobs left in the journal."""
    with Publisher(settings.kafka, online, releases) as publisher:  # creates missing topics
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
    """User ids from a UTF-8 text file of at most IDS_BYTES, one per line, taken literally; empty lines are skipped.
    Raises UsageError."""
    try:
        lines = read_text(path, IDS_BYTES).split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read user ids from `{path}`: {error}", hint="one id a line, in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.startswith("\ufeff"):  # from concatenated files
            raise UsageError(
                f"`{path}`, line {number} begins with a byte order mark, which is no part of an id",
                hint="remove it; an id that truly has one can be given with --user",
            )
    return [line for line in (line.removesuffix("\r") for line in lines) if line]


def check_ids(users: Sequence[str], max_bytes: int, *, id_type: IdType = "string") -> None:
    """Raises UsageError for no ids, or an id that no event can have: it must be a typing error."""
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
    """Number of users with a history row. Raises UsageError for an id that the entity's type cannot hold."""
    try:
        parts = (users[start : start + BATCH_USERS] for start in range(0, len(users), BATCH_USERS))
        return sum(user.revision > 0 for part in parts for user in online.read(part, []))
    except DataError as error:
        raise UsageError(error.message, hint=error.hint) from None


def embedding_topics(settings: BatchSettings, kept: Sequence[Kept]) -> tuple[str, ...]:
    """Embedding topics of every release ever published, live or not."""
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
    """Number of the lake's events that would be removed."""
    rows = 0
    for bucket in sorted(set(buckets_of(users, lake.buckets).tolist())):
        wanted = pa.array(users, pa.string())
        for table in lake.batches(bucket=bucket, to_ms=through_ms + 1, columns=["user_id"]):
            rows += pc.sum(pc.is_in(table["user_id"], value_set=wanted)).as_py() or 0
    return rows


def append_audit(path: Path, record: Mapping[str, Any]) -> None:
    """Appends `record`, which must not identify users, and the time. Raises InfrastructureError."""
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
