"""`spoor merge-users`: moves an anonymous id's events to a login and deletes the anonymous id.

All events of the old id in the lake move, to one new work item under the new id. The guarded writer merges them into
the new id's history. Then the old id is deleted up to the newest moved event; later events stay with the old id until
the next merge.

 1. write the moved events to the lake                  the item is named after their offsets: repeating replaces it
 2. merge them into the new id's history, publish it    idempotent
 3. forget the old id (forget.py), audit record         idempotent; a run that finds the old id listed as deleted
                                                        continues here
"""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spoor.activity.hashing import buckets_of
from spoor.activity.history import NEVER, group_events, history_values, not_among
from spoor.activity.lake import LAKE_SCHEMA, Lake, open_lake
from spoor.activity.packing import unpack
from spoor.base.errors import UsageError
from spoor.batch.forget.forget import AUDIT, Reach, alone, append_audit, check_ids, forget_everywhere, open_reach
from spoor.batch.jobs import fingerprint
from spoor.batch.kafka.retention import Kept, kept_until
from spoor.batch.releases import live_names
from spoor.batch.settings import BatchSettings
from spoor.store.online import OnlineStore, open_online


@dataclass(frozen=True)
class MergeResult:
    """Holds no ids: it goes into the audit."""

    job: str
    events: int  # of the old id in the lake: moved, or in a dry run, to be moved
    forgotten_through_ms: int  # cut-off: time of the newest of them; later events stay with the old id
    dry_run: bool
    changed: bool = False  # whether the new id's history changed
    lake_rows: int = 0  # of the old id, removed from the lake
    offline_rows: int = 0  # of the old id, removed from the offline log
    topics: tuple[str, ...] = ()  # embedding topics; each gets a tombstone for the old id
    kept: list[Kept] = field(default_factory=list)  # topics whose records only Kafka can remove, and until when
    seconds: float = 0.0


def run_merge_users(settings: BatchSettings, old: str, new: str, *, dry_run: bool = False) -> MergeResult:
    """Moves the events of the user id `old` to `new`. The moved events get the current time as append time, so earlier
    training snapshots do not contain them.

    Raises UsageError (equal or bad ids, nothing to move, or events that are not archived yet), DataError (damaged lake,
    offline log or history), InfrastructureError (store, broker or disk, or another job of `alone` is running).
    """
    started = time.monotonic()
    check_ids([old, new], settings.events.max_id_bytes, id_type=settings.events.user_id_type)
    if old == new:
        raise UsageError("--from and --to are the same id", hint="--from is the anonymous id, --to the login")
    now_ms = time.time_ns() // 1_000_000
    releases, lake = live_names(settings), open_lake(settings.lake)
    with alone(settings, lake), ExitStack() as stack:
        online = open_online(settings.features)
        online.check(releases)
        unpack([user.history or b"" for user in online.read([old, new], []) if user.history is not None])  # or raises
        rows = _rows_of(lake, old)
        through = _through(lake, old, rows)
        if len(rows):
            _check_archived(online, old, rows, after_ms=int(lake.forgotten.through([old])[0]), through_ms=through)
        result = MergeResult(f"merge-{uuid.uuid4().hex[:16]}", len(rows), through, dry_run)
        if dry_run:
            return replace(result, kept=kept_until(settings.kafka, now_ms=now_ms))
        reach = stack.enter_context(open_reach(settings, lake, online, releases, now_ms=now_ms))
        moved = lake.forgotten.without_past(_moved(rows, new, now_ms=now_ms))
        changed = _move(reach, moved, new, max_events=settings.history.max_events) if len(moved) else False
        lake_rows, offline_rows = forget_everywhere(reach, [old], through_ms=through)
        result = replace(result, changed=changed, lake_rows=lake_rows, offline_rows=offline_rows)
        result = replace(result, topics=reach.topics, kept=reach.kept, seconds=time.monotonic() - started)
        append_audit(settings.state_folder / AUDIT, asdict(result))
    return result


def _rows_of(lake: Lake, user: str) -> pa.Table:
    """The user's rows (LAKE_SCHEMA) in the lake, in the order of their offsets."""
    bucket = int(buckets_of([user], lake.buckets)[0])
    found = [table.filter(pc.equal(table["user_id"], user)) for table in lake.batches(bucket=bucket)]
    rows = pa.concat_tables([LAKE_SCHEMA.empty_table(), *found])
    return rows.sort_by([("partition", "ascending"), ("offset", "ascending")])


def _through(lake: Lake, old: str, rows: pa.Table) -> int:
    """The cut-off of the old id. Raises UsageError if there is nothing to move and no earlier run to continue."""
    through = int(lake.forgotten.through([old])[0])
    if len(rows):
        return max(through, int(pc.max(rows["timestamp"]).as_py()))
    if through == NEVER:
        raise UsageError(
            f"the lake `{lake.folder}` holds no event of the user given with --from",
            hint="check the id, and run `spoor archive` if its events are not there yet",
        )
    return through


def _check_archived(online: OnlineStore, old: str, rows: pa.Table, *, after_ms: int, through_ms: int) -> None:
    """Raises UsageError if the store holds an event in (after_ms, through_ms] that the lake lacks: it would be deleted
    with the old id and not moved."""
    stored = online.read([old], [])[0].history
    if stored is None:
        return
    events = unpack([stored])[0]
    times = events["timestamp"]
    missing = not_among(events[(times > after_ms) & (times <= through_ms)], history_values(rows))
    if len(missing):
        raise UsageError(
            f"{len(missing)} events of the user given with --from are in the online store and not in the lake yet",
            hint="run `spoor archive` first",
        )


def _moved(rows: pa.Table, new: str, *, now_ms: int) -> pa.Table:
    """The rows under the new id, with append time `now_ms`."""
    users, times = pa.array([new] * len(rows), pa.string()), pa.array(np.full(len(rows), now_ms))
    for name, column in (("user_id", users), ("append_time", times)):
        rows = rows.set_column(rows.schema.get_field_index(name), LAKE_SCHEMA.field(name), column)
    return rows


def _move(reach: Reach, moved: pa.Table, new: str, *, max_events: int) -> bool:
    """Steps 1 and 2. Returns whether the new id's history changed."""
    item = f"merged-{fingerprint(moved['partition'].to_pylist(), moved['offset'].to_pylist())}"
    reach.lake.write(item, moved, {"merged": True})
    users, histories = group_events([new] * len(moved), history_values(moved), max_events=max_events)
    through = reach.lake.forgotten.through(users)
    with reach.journal.published(users, reach.publisher):
        result = reach.writer.update(users, histories, as_of_ms=np.array([reach.now_ms]), forget_through=through)
    return bool(result.changed[0])
