"""Reads users' histories from the lake and converts them to the Arrow tables that pass between Beam steps.

A work item is a group of user buckets: one bucket or several small ones, because every item costs files and reads.
`newest_histories` keeps only each user's newest L events while it reads the files, so memory is bounded by users × L.
`snapshot_slices` holds all events of the group (32 bytes per event, plus the user ids), because every snapshot needs
another part of them. More lake.buckets make both smaller.

Both are cut into slices, which are spans of places. A user's place is computed from the hash of its id and does not
change when other users are added or removed; so a retry finds the same users in a span and does the uncovered spans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spoor.activity.events import EVENT_SCHEMA
from spoor.activity.fields import is_int64
from spoor.activity.hashing import user_hashes
from spoor.activity.history import (
    EVENT_DTYPE,
    Histories,
    Values,
    concat,
    group_events,
    history_values,
    merge,
    offsets_of,
    slice_rows,
)
from spoor.activity.lake import Lake

SLICE_USERS = 4_096  # users per element: 20 MB of histories at L = 256
PLACES = 1 << 32  # places of users; the n-th snapshot time (from 0) begins at place n × PLACES
GROUP_EVENTS = 1_000_000  # buckets are grouped up to this many events
FOLD_EVENTS = 1_000_000  # events collected before they are merged into the histories
_UNBOUNDED = np.iinfo(np.int64).max
_EVENT_TYPE = pa.struct(
    [("timestamp", pa.int64()), ("item", pa.uint64()), ("action", pa.uint64()), ("surface", pa.uint64())]
)
BATCH_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("as_of_ms", pa.int64(), nullable=False),  # time from which this history was known
        pa.field("history", pa.list_(_EVENT_TYPE), nullable=False),  # oldest first
    ]
)
Int64s = npt.NDArray[np.int64]
Span = tuple[int, int]  # places [start, end)


@dataclass(frozen=True, eq=False)
class UserBatch:
    """Row i: a user, its history, and its as-of time in ms, from which the history was known."""

    user_ids: list[str]
    histories: Histories
    as_of_ms: Int64s

    def take(self, rows: npt.ArrayLike) -> UserBatch:
        rows = np.asarray(rows, np.int64)
        return UserBatch([self.user_ids[row] for row in rows], self.histories.take(rows), self.as_of_ms[rows])

    def of_type(self, user_id_type: str) -> UserBatch:
        """Drops users whose ids Feast's entity cannot hold: they were archived before events.user_id_type was int64."""
        if user_id_type == "string":
            return self
        return self.take([row for row, user in enumerate(self.user_ids) if is_int64(user)])

    def to_arrow(self) -> pa.Table:
        """As BATCH_SCHEMA; copies numbers by column, not by event."""
        values = self.histories.values
        columns = [pa.array(np.ascontiguousarray(values[field.name]), field.type) for field in _EVENT_TYPE]
        events = pa.StructArray.from_arrays(columns, fields=list(_EVENT_TYPE))
        offsets = pa.array(self.histories.offsets.astype(np.int32))
        history = pa.ListArray.from_arrays(offsets, events, type=pa.list_(_EVENT_TYPE))
        return pa.table([pa.array(self.user_ids, pa.string()), pa.array(self.as_of_ms), history], schema=BATCH_SCHEMA)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> UserBatch:
        history = table["history"].combine_chunks()
        events = history.flatten()
        values = np.empty(len(events), EVENT_DTYPE)
        for index, field in enumerate(_EVENT_TYPE):
            values[field.name] = events.field(index).to_numpy()
        offsets = offsets_of(history.value_lengths().to_numpy())
        return cls(table["user_id"].to_pylist(), Histories(values, offsets), table["as_of_ms"].to_numpy())


def bucket_groups(lake: Lake, *, group_events: int | None = None) -> list[tuple[int, ...]]:
    """The buckets that hold data, ascending, in groups of one bucket or of at most `group_events` events."""
    limit = GROUP_EVENTS if group_events is None else group_events
    events: Counter[int] = Counter()
    for record in lake.manifest.records().values():
        for file in record["files"]:
            events[file["bucket"]] += file["rows"]
    groups: list[tuple[int, ...]] = []
    held = 0
    for bucket in sorted(events):
        if not groups or held + events[bucket] > limit:
            groups.append(())
            held = 0
        groups[-1] += (bucket,)
        held += events[bucket]
    return groups


def newest_histories(
    lake: Lake,
    buckets: Sequence[int],
    *,
    max_events: int,
    to_ms: int | None = None,
    as_of: Literal["append", "event"] = "append",
    fold_events: int = FOLD_EVENTS,
) -> UserBatch:
    """All users of the buckets with an event before `to_ms`, sorted by id, and the newest `max_events` of these events.

    as_of_ms is as in the stream: the latest append time of the user's events, or with `as_of="event"` the latest event
    time; and at least `to_ms`.
    """
    state = UserBatch([], Histories.empty(0), np.empty(0, np.int64))
    columns = [*EVENT_SCHEMA.names, "append_time"]
    pending: list[pa.Table] = []
    files = (lake.batches(bucket=bucket, to_ms=to_ms, columns=columns) for bucket in buckets)
    for table in chain.from_iterable(files):
        pending.append(table)
        if sum(map(len, pending)) >= fold_events:
            state = _fold(state, pa.concat_tables(pending), max_events=max_events, as_of=as_of)
            pending = []
    if pending:
        state = _fold(state, pa.concat_tables(pending), max_events=max_events, as_of=as_of)
    batch = state.take(np.argsort(np.array(state.user_ids, object), kind="stable"))
    if to_ms is None:
        return batch
    return UserBatch(batch.user_ids, batch.histories, np.maximum(batch.as_of_ms, to_ms))


def snapshot_times(from_ms: int, to_ms: int, every_ms: int) -> list[int]:
    """from_ms, from_ms + every_ms, …; at most to_ms."""
    return list(range(from_ms, to_ms + 1, every_ms))


def newest_slices(batch: UserBatch, spans: Sequence[Span], *, slice_users: int) -> Iterator[tuple[Span, UserBatch]]:
    """The rows of `newest_histories` in the spans, in slices as `cut` makes them."""
    places = _places(batch.user_ids)
    order = np.argsort(places, kind="stable")
    for span, rows in cut(places[order], spans, slice_rows=slice_users):
        yield span, batch.take(order[rows])


def cut(places: Int64s, spans: Sequence[Span], *, slice_rows: int) -> Iterator[tuple[Span, slice]]:
    """Cuts each span into consecutive spans with `slice_rows` of the ascending `places` each, or a few more if places
    are equal. Yields at least one span for each given one, even without rows."""
    for start, end in spans:
        at, last = np.searchsorted(places, [start, end]).tolist()
        while start < end:
            upto = min(at + slice_rows, last)
            if upto < last:
                upto = int(np.searchsorted(places, places[upto - 1], side="right"))
            following = int(places[upto - 1]) + 1 if upto < last else end
            yield (start, following), slice(at, upto)
            start, at = following, upto


def _places(user_ids: Sequence[str]) -> Int64s:
    """int64[n] in [0, PLACES): half of the hash, so a place alone does not identify a user."""
    return (user_hashes(user_ids) >> np.uint64(32)).astype(np.int64)


def snapshot_slices(
    lake: Lake,
    buckets: Sequence[int],
    spans: Sequence[Span],
    *,
    times_ms: Sequence[int],
    max_events: int,
    as_of: Literal["append", "event"] = "append",
    slice_users: int = SLICE_USERS,
) -> Iterator[tuple[Span, UserBatch]]:
    """The buckets' histories at each of the ascending times, for places in the spans, in slices as `cut` makes them.

    A row is one user at one time T: the newest `max_events` events before T. Only users with an event since the
    previous time have a row (at the first time: every user with an event before it). as_of_ms is T, or the latest
    append time if that is later: a point-in-time read at T must not see events appended after T.
    """
    columns = [*EVENT_SCHEMA.names, "append_time"]
    table = pa.concat_tables([lake.read(bucket=bucket, to_ms=times_ms[-1], columns=columns) for bucket in buckets])
    names, values = table["user_id"].to_pylist(), history_values(table)
    user_ids, histories = group_events(names, values, max_events=_UNBOUNDED)
    rows = snapshot_rows(histories, times_ms)
    as_of_ms = np.asarray(times_ms, np.int64)[rows.times]
    if as_of == "append":
        index = {user: number for number, user in enumerate(user_ids)}
        users = np.fromiter((index[name] for name in names), np.int64, count=len(names))
        as_of_ms = np.maximum(as_of_ms, _known_from(users, values, table["append_time"].to_numpy(), times_ms))
    places = rows.times * PLACES + _places(user_ids)[rows.users]
    order = np.argsort(places, kind="stable")
    for span, of_span in cut(places[order], spans, slice_rows=slice_users):
        part = order[of_span]
        ends = rows.ends[part]
        starts = np.maximum(histories.offsets[rows.users[part]], ends - max_events)
        users = [user_ids[user] for user in rows.users[part]]
        yield span, UserBatch(users, _events_at(histories, starts, ends), as_of_ms[part])


@dataclass(frozen=True)
class SnapshotRows:
    """Row i: at time index `times[i]`, the history of user `users[i]` ends before position `ends[i]` of the values."""

    users: Int64s
    times: Int64s
    ends: Int64s


def snapshot_rows(histories: Histories, times_ms: Sequence[int]) -> SnapshotRows:
    """The users that changed between consecutive times. `histories` are complete, not cut to the newest L."""
    users = np.repeat(np.arange(histories.count), histories.lengths)
    seen_from = _seen_from(histories.values, times_ms)
    at = np.flatnonzero(_last_of_groups(users, seen_from) & (seen_from < len(times_ms)))
    return SnapshotRows(users[at], seen_from[at], at + 1)


def _known_from(users: Int64s, values: Values, append_times: Int64s, times_ms: Sequence[int]) -> Int64s:
    """Latest append time of the records in each row of `snapshot_rows`, in its order. `users`, `values` and
    `append_times` are of records in any order, duplicates included."""
    seen_from = _seen_from(values, times_ms)
    order = np.lexsort((seen_from, users))
    users, seen_from, latest = users[order], seen_from[order], append_times[order]
    for of_user in np.split(latest, np.flatnonzero(np.diff(users)) + 1):
        np.maximum.accumulate(of_user, out=of_user)
    return latest[_last_of_groups(users, seen_from) & (seen_from < len(times_ms))]


def _seen_from(values: Values, times_ms: Sequence[int]) -> Int64s:
    """Index of the first time after each event."""
    return np.searchsorted(np.asarray(times_ms, np.int64), values["timestamp"], side="right")


def _last_of_groups(users: Int64s, seen_from: Int64s) -> npt.NDArray[np.bool_]:
    """bool[n]: whether a row is the last with its user and time index; rows are sorted by both."""
    last = np.ones(len(users), bool)
    last[:-1] = (users[1:] != users[:-1]) | (seen_from[1:] != seen_from[:-1])
    return last


def _events_at(histories: Histories, starts: Int64s, ends: Int64s) -> Histories:
    """The events values[starts[i]:ends[i]] as the history of row i."""
    positions, offsets = slice_rows(starts, ends - starts)
    return Histories(histories.values[positions], offsets)


def _fold(state: UserBatch, table: pa.Table, *, max_events: int, as_of: Literal["append", "event"]) -> UserBatch:
    """`state` with the table's events merged in; new users come last."""
    names = table["user_id"].to_pylist()
    values = history_values(table)
    found, histories = group_events(names, values, max_events=max_events)
    rows = {user: row for row, user in enumerate(state.user_ids)}
    user_ids = list(dict.fromkeys([*state.user_ids, *found]))
    known = len(state.user_ids)
    rows |= {user: known + row for row, user in enumerate(user_ids[known:])}
    times = table["append_time"].to_numpy() if as_of == "append" else values["timestamp"]
    as_of_ms = np.concatenate([state.as_of_ms, np.full(len(user_ids) - known, np.iinfo(np.int64).min)])
    np.maximum.at(as_of_ms, np.array([rows[user] for user in names], np.int64), times)
    old = concat([state.histories, Histories.empty(len(user_ids) - known)])
    position = np.full(len(user_ids), len(found), np.int64)  # position of the appended empty history
    position[[rows[user] for user in found]] = np.arange(len(found))
    new = concat([histories, Histories.empty(1)]).take(position)
    return UserBatch(user_ids, merge(old, new, max_events=max_events), as_of_ms)
