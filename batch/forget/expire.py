"""`spoor forget --expire`: removes the markers of forgotten users once nothing can bring their past back any more.

A marker is needed for as long as something may still be read that was recorded before its user was forgotten, or soon
after it (`grace`: late producers, a store restored from a copy). What Kafka still has is asked, not computed from
settings that may have changed: the oldest of

    the activity topic's records         a rewind, a new group or `spoor archive --again` reads them
    the open dead letters                `spoor dlq replay` sends them; `replayed` ones may be of any age
    the embedding topics' records that   the next `spoor archive` lands them
    the offline log has not been given

minus `grace` is the bound: who was forgotten before it is due.

 1. remove the rows of users who are due and have no events    only if the revision still stands: who has returned stays
 2. drop who is due from the lake's list                       not whose past is still there: a forget was killed
 3. remove the lists of users that killed jobs left, which may name them, and append the audit record

It may be killed anywhere and run again. Workers go on meanwhile: one that has such a marker in its cache is refused,
and begins the user anew (docs/decisions/0007-forgetting.md).
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
LEAST_GRACE_MS = 86_400_000  # 24 times as long as a worker remembers a user (store/cache.py)
_CHUNK_USERS = 1_000
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holds:
    """What may still bring a past back, and the time of the oldest of it, ISO 8601; 1970 where it has none."""

    what: str
    since: str


@dataclass(frozen=True)
class ExpireResult:
    """`removed`, `listed`: with a dry run, that would be. No ids: this goes into the audit."""

    job: str
    before: str  # ISO 8601: who was forgotten before then is due
    dry_run: bool
    removed: int = 0  # markers: rows without events
    waiting: int = 0  # markers that are not due
    changed: int = 0  # markers whose user was written meanwhile: they stay
    returned: int = 0  # users with a marker and events after it: their rows stay as they are
    listed: int = 0  # taken out of the lake's list
    unfinished: int = 0  # users whose past is still in lake or store, as a `spoor forget` was killed: they stay listed
    holds: tuple[Holds, ...] = ()
    seconds: float = 0.0


def run_expire(
    settings: BatchSettings, *, grace_ms: int, oldest_letter_ms: int | None, dry_run: bool = False
) -> ExpireResult:
    """`oldest_letter_ms`: time of the oldest open dead letter, asked before this is called; None where none is open.

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
    """For Prometheus."""
    return [
        gauge("spoor_expire_removed_markers", "markers that the last expire removed", result.removed),
        gauge("spoor_expire_waiting_markers", "markers that the last expire left, not due yet", result.waiting),
        gauge("spoor_expire_unfinished_users", "users whose forgetting did not come to its end", result.unfinished),
    ]


def _expire_online(
    online: OnlineStore, forgotten: ForgottenUsers, unfinished: set[str], result: ExpireResult, *, before_ms: int
) -> ExpireResult:
    """Step 1; with a dry run, counts alone. A marker counts as of the time that the lake's list has for its user, or
    else the as-of time of its row, which forgetting sets too. Adds to `unfinished` whose past the store holds."""
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
                if through[n] > NEVER:  # its past may be in these bytes
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
