"""`spoor forget --expire`: removes the markers of deleted users that no source can restore.

A marker expires when every source is newer than deletion + `grace` (for late producers and a store restored from a
copy). The sources are read from Kafka, because settings may have changed since:

    the activity topic's records              a rewind, a new group or `spoor archive --again` reads them
    the open dead letters                     `spoor dlq replay` sends them; `replayed` ones may be of any age
    the embedding topics' records that are    the next `spoor archive` lands them
    not in the offline log

 1. remove rows of expired markers without events     only at an unchanged revision: returned users keep their rows
 2. drop expired markers from the lake's list         except users with remaining data: their forget was killed
 3. remove user lists of killed jobs, which may name expired users, and append the audit record

The job can be killed at any point and run again. Workers keep running: the store refuses a write from a cached marker,
and the worker starts that user afresh (docs/decisions/0007-forgetting.md).
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import asdict, dataclass, replace

from prometheus_client.metrics_core import Metric

from spoor.activity.forgotten import ForgottenUsers
from spoor.activity.history import NEVER
from spoor.activity.lake import open_lake
from spoor.activity.packing import unpack_readable
from spoor.base.errors import UsageError
from spoor.base.numbers import number_text
from spoor.batch.forget.forget import AUDIT, alone, append_audit
from spoor.batch.job_metrics import JobMetrics, gauge
from spoor.batch.kafka.archive_embeddings import oldest_unlanded_ms
from spoor.batch.kafka.retention import iso_time, oldest_record_ms
from spoor.batch.settings import BatchSettings
from spoor.batch.users.listing import remove_listings
from spoor.store.online import OnlineStore, open_online

GRACE_MS = 7 * 86_400_000  # unless the operator knows better
LEAST_GRACE_MS = 86_400_000  # 24 times a worker's cache time for a user (store/cache.py)
_CHUNK_USERS = 1_000
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holds:
    """A source that may restore deleted events, and the time of its oldest record (ISO 8601; 1970 if it has none)."""

    what: str
    since: str


@dataclass(frozen=True)
class ExpireResult:
    """In a dry run, `removed` and `listed` count what would be removed. Holds no ids: it goes into the audit."""

    job: str
    before: str  # ISO 8601: users deleted before this time are due
    dry_run: bool
    removed: int = 0  # markers: rows without events
    waiting: int = 0  # markers that are not due
    changed: int = 0  # markers kept because their user was written meanwhile
    returned: int = 0  # users with a marker and later events: their rows are kept
    listed: int = 0  # dropped from the lake's list
    unfinished: int = 0  # users with data left in lake or store by a killed `spoor forget`: they stay listed
    holds: tuple[Holds, ...] = ()
    seconds: float = 0.0


def run_expire(
    settings: BatchSettings, *, grace_ms: int, oldest_letter_ms: int | None, dry_run: bool = False
) -> ExpireResult:
    """`oldest_letter_ms`: time of the oldest open dead letter, read by the caller; None if none is open.

    Raises UsageError (too short a grace, no activity topic, a store that cannot list its users, Feast not applied),
    DataError (damaged lake or history), InfrastructureError (store, broker or disk, or another job is running).
    """
    started = time.monotonic()
    metrics = JobMetrics(settings.state_folder, "expire")
    least_ms = max(LEAST_GRACE_MS, settings.events.max_skew_seconds * 1000)
    if grace_ms < least_ms:
        raise UsageError(
            f"--grace is {number_text(grace_ms / 3_600_000)} h",
            hint=f"it must be at least {number_text(least_ms / 3_600_000)} h",
        )
    lake = open_lake(settings.lake)
    with alone(settings, lake):
        online = open_online(settings.features)
        online.check([])
        if not online.lists_users:
            raise UsageError(
                "this online store cannot list its users, so markers are not found in it",
                hint="Redis and SQLite can; in another store, remove the rows with its own tools",
            )
        oldest = {
            settings.kafka.topic: oldest_record_ms(settings.kafka),
            settings.kafka.dead_letter_topic: oldest_letter_ms,
            f"{settings.kafka.embedding_topic_prefix}*, not archived": oldest_unlanded_ms(settings),
        }
        holds = {what: since for what, since in oldest.items() if since is not None}
        before_ms = min([time.time_ns() // 1_000_000, *holds.values()]) - grace_ms
        result = ExpireResult(
            f"expire-{uuid.uuid4().hex[:16]}",
            iso_time(max(before_ms, 0)),
            dry_run,
            holds=tuple(Holds(what, iso_time(since)) for what, since in holds.items()),
        )
        forgotten = lake.forgotten
        unfinished = lake.users_with_past()
        result = _expire_online(online, forgotten, unfinished, result, before_ms=before_ms)
        listed = (forgotten.before if dry_run else forgotten.drop_before)(before_ms, but=unfinished)
        result = replace(result, listed=listed, unfinished=len(unfinished), seconds=time.monotonic() - started)
        if unfinished:
            _LOG.warning(
                "lake or store still hold the past of %d users who were to be forgotten: run `spoor forget` for them",
                len(unfinished),
            )
        if not dry_run:
            remove_listings(settings.state_folder)
            append_audit(settings.state_folder / AUDIT, asdict(result))
            metrics.ended(*figures(result))
    return result


def figures(result: ExpireResult) -> list[Metric]:
    """The result as Prometheus metrics."""
    return [
        gauge("spoor_expire_removed_markers", "markers that the last expire removed", result.removed),
        gauge("spoor_expire_waiting_markers", "markers that the last expire left, not due yet", result.waiting),
        gauge("spoor_expire_unfinished_users", "users whose forgetting did not come to its end", result.unfinished),
    ]


def _expire_online(
    online: OnlineStore, forgotten: ForgottenUsers, unfinished: set[str], result: ExpireResult, *, before_ms: int
) -> ExpireResult:
    """Step 1; a dry run only counts. A marker's time is that of its user in the lake's list, else the as-of time of its
    row, which a forget also sets. Adds users whose deleted events are still in the store to `unfinished`."""
    removed = waiting = changed = returned = 0
    for listed in online.user_chunks(_CHUNK_USERS):
        users = list(dict.fromkeys(listed))  # a listing may name a user twice
        rows = {user: row for user, row in zip(users, online.read(users, []), strict=True) if row.history is not None}
        histories, marks, unreadable = unpack_readable([row.history for row in rows.values()])
        through, at = forgotten.through(list(rows)), forgotten.at(list(rows))
        with_past = histories.lengths > histories.after(through).lengths
        due: dict[str, int] = {}  # user → revision
        for n, (user, row) in enumerate(rows.items()):
            if unreadable[n]:
                if through[n] > NEVER:  # the bytes may hold deleted events
                    unfinished.add(user)
            elif through[n] > marks[n] and with_past[n]:
                unfinished.add(user)
            elif marks[n] == NEVER:
                continue
            elif row.has_events:
                returned += 1
            elif user not in unfinished and (row.as_of_ms if at[n] == NEVER else at[n]) < before_ms:
                due[user] = row.revision
            else:
                waiting += 1
        gone = len(due) if result.dry_run else int(online.remove(due).sum())
        removed += gone
        changed += len(due) - gone
    return replace(result, removed=removed, waiting=waiting, changed=changed, returned=returned)
