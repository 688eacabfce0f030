"""Histories: each user's newest L events as a bounded ordered set.

(timestamp, item, action, surface) identifies and orders an event; all but the first are unsigned 64-bit hashes.
merge(A, B) = the newest L of A ∪ B: associative, commutative and idempotent, so a history depends only on the set of
events seen. A batch of histories is jagged: (values, offsets).

An old event was stored by hash version 1 and has names of 16 bits. Among events of the same time and item, an event
whose names begin with these 16 bits replaces it. docs/decisions/0015-names-of-64-bits.md shows that merging keeps its
laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spoor.activity.hashing import OLD_NAMES, hash_items, hash_names, old_names

EVENT_DTYPE = np.dtype([("timestamp", "<i8"), ("item", "<u8"), ("action", "<u8"), ("surface", "<u8")])
Values = npt.NDArray[np.void]  # of EVENT_DTYPE
Int64s = npt.NDArray[np.int64]
NEVER = int(np.iinfo(np.int64).min)  # cut-off of a user who was never deleted: before every event


@dataclass(frozen=True, eq=False)
class Histories:
    """A batch of histories. `values` EVENT_DTYPE[N], oldest first per user; `offsets` int64[U + 1]. The events of user
    u are values[offsets[u]:offsets[u + 1]]."""

    values: Values
    offsets: Int64s

    @classmethod
    def empty(cls, users: int) -> Histories:
        return cls(np.empty(0, EVENT_DTYPE), np.zeros(users + 1, np.int64))

    @classmethod
    def of(cls, per_user: Sequence[Values]) -> Histories:
        """Builds a batch from one array of events per user."""
        lengths = np.fromiter((len(values) for values in per_user), np.int64, count=len(per_user))
        values = np.concatenate([np.empty(0, EVENT_DTYPE), *per_user])
        return cls(values, offsets_of(lengths))

    @property
    def count(self) -> int:
        """The number of users."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int64s:
        """int64[U]: events per user."""
        return np.diff(self.offsets)

    def __getitem__(self, user: int) -> Values:
        return self.values[self.offsets[user] : self.offsets[user + 1]]

    def take(self, users: npt.ArrayLike) -> Histories:
        """The histories of the users at these positions, in that order."""
        users = np.asarray(users, np.int64)
        rows, offsets = slice_rows(self.offsets[users], self.lengths[users])
        return Histories(self.values[rows], offsets)

    def newest(self, max_events: int) -> Histories:
        """The newest `max_events` events of each user, at most."""
        if self.count == 0 or self.lengths.max() <= max_events:
            return self
        from_end = np.repeat(self.offsets[1:], self.lengths) - np.arange(len(self.values))
        return self._keep(from_end <= max_events)

    def oldest(self, lengths: Int64s) -> Histories:
        """The first lengths[u] events of each user."""
        from_start = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)
        return self._keep(from_start < np.repeat(lengths, self.lengths))

    def after(self, times_ms: Int64s) -> Histories:
        """Each user's events after `times_ms` int64[U] (exclusive): the rest of a deleted user's history. A user with
        NEVER keeps all."""
        if (times_ms == NEVER).all():
            return self
        return self._keep(self.values["timestamp"] > np.repeat(times_ms, self.lengths))

    def last_times(self) -> Int64s:
        """int64[U]: time of each user's newest event in ms, 0 for a user without events."""
        times = np.zeros(self.count, np.int64)
        some = self.lengths > 0
        times[some] = self.values["timestamp"][self.offsets[1:][some] - 1]
        return times

    def hold_old_events(self) -> npt.NDArray[np.bool_]:
        """bool[U]: whether a user has events with names of hash version 1."""
        held = np.zeros(self.count, bool)
        held[_users(self)[_old(self.values)]] = True
        return held

    def repeats(self) -> int:
        """The number of events whose item occurs earlier in the same history."""
        users, items = _users(self), self.values["item"]
        order = np.lexsort((items, users))
        return int(((np.diff(items[order]) == 0) & (np.diff(users[order]) == 0)).sum())

    def _keep(self, mask: npt.NDArray[np.bool_]) -> Histories:
        kept_before = np.concatenate([[0], np.cumsum(mask)])
        return Histories(self.values[mask], kept_before[self.offsets])


def slice_rows(starts: Int64s, lengths: Int64s) -> tuple[Int64s, Int64s]:
    """The rows of jagged slices, concatenated, int64[sum of lengths], and the slices' offsets among them, int64[slices
    + 1]. Slice i holds the rows starts[i] to starts[i] + lengths[i] - 1."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets


def concat(batches: Sequence[Histories]) -> Histories:
    """The users of all batches, batch after batch."""
    values = np.concatenate([np.empty(0, EVENT_DTYPE), *(batch.values for batch in batches)])
    lengths = np.concatenate([np.empty(0, np.int64), *(batch.lengths for batch in batches)])
    return Histories(values, offsets_of(lengths))


def merge(a: Histories, b: Histories, *, max_events: int) -> Histories:
    """Per user the newest `max_events` of the union. `a` and `b` hold the same users in the same order."""
    if a.count != b.count:
        raise ValueError(f"merge of {a.count} with {b.count} users")
    users = np.concatenate([_users(a), _users(b)])
    return canonical(users, np.concatenate([a.values, b.values]), a.count).newest(max_events)


def equal_rows(a: Histories, b: Histories) -> npt.NDArray[np.bool_]:
    """bool[U]: whether user u has the same events in both."""
    if a.count != b.count:
        raise ValueError(f"comparison of {a.count} with {b.count} users")
    equal = a.lengths == b.lengths
    candidates = np.flatnonzero(equal)
    left, right = a.take(candidates), b.take(candidates)
    differing = np.unique(_users(left)[left.values != right.values])
    equal[candidates[differing]] = False
    return equal


def same_events(stored: Histories, known: Histories) -> npt.NDArray[np.bool_]:
    """bool[U]: like `equal_rows`, but an old event of `stored` equals the event of `known` that replaces it."""
    equal = equal_rows(stored, known)
    rows = np.flatnonzero(stored.hold_old_events() & (stored.lengths == known.lengths))
    if len(rows):
        part = known.take(rows)
        equal[rows] = equal_rows(merge(stored.take(rows), part, max_events=len(known.values)), part)
    return equal


def not_among(events: Values, known: Values) -> Values:
    """One user's `events` that `known` lacks. `known` has an old event if it has an event that replaces it."""
    both = canonical(np.zeros(len(events) + len(known), np.int64), np.concatenate([events, known]), 1).values
    return np.setdiff1d(both, known)


def group_events(user_ids: Sequence[str], values: Values, *, max_events: int) -> tuple[list[str], Histories]:
    """Groups events in any order, one user id each. Returns the distinct users in order of first appearance, and their
    histories."""
    index: dict[str, int] = {}
    users = np.fromiter((index.setdefault(user, len(index)) for user in user_ids), np.int64, count=len(user_ids))
    return list(index), canonical(users, values, len(index)).newest(max_events)


def canonical(users: Int64s, values: Values, count: int) -> Histories:
    """Builds the histories of `count` users from events in any order, each with its user's index. Equal events are kept
    once; an old event is dropped if another event replaces it."""
    order = np.lexsort((values["item"], values["timestamp"], users))
    users, values = users[order], values[order]
    times, items = values["timestamp"], values["item"]
    tied = (items[1:] == items[:-1]) & (times[1:] == times[:-1]) & (users[1:] == users[:-1])
    if tied.any():  # only tied events are compared by names
        repeated = tied & _same_names(values)
        kept = np.append(True, ~repeated)
        users, values, tied = users[kept], values[kept], tied[~repeated]
    if tied.any():
        kept = _order_ties(values, tied)
        users, values = users[kept], values[kept]
    return Histories(values, offsets_of(np.bincount(users, minlength=count)))


def _order_ties(values: Values, tied: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Sorts events of one user, time and item by their names, in place. `tied` bool[N - 1]: whether the next event has
    the same user, time and item. Returns bool[N]: which events to keep."""
    rows = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
    groups = np.cumsum(np.append(True, ~tied))[rows]
    part = values[rows]
    part = part[np.lexsort((part["surface"], part["action"], groups))]
    values[rows] = part
    gone = np.append(False, _same_names(part) & (groups[1:] == groups[:-1]))
    old = _old(part)
    if old.any() and not old.all():
        names = old_names(part["action"]) << np.uint64(16) | old_names(part["surface"])
        keys = groups.astype(np.uint64) << np.uint64(32) | names
        gone |= old & np.isin(keys, keys[~old])
    kept = np.ones(len(values), bool)
    kept[rows[gone]] = False
    return kept


def _same_names(values: Values) -> npt.NDArray[np.bool_]:
    """bool[N - 1]: whether the next event has the same action and surface."""
    actions, surfaces = values["action"], values["surface"]
    return (actions[1:] == actions[:-1]) & (surfaces[1:] == surfaces[:-1])


def _old(values: Values) -> npt.NDArray[np.bool_]:
    return (values["action"] < OLD_NAMES) & (values["surface"] < OLD_NAMES)


def history_values(events: pa.Table) -> Values:
    """Rows of EVENT_SCHEMA → EVENT_DTYPE[n], with hashes for names."""
    values = np.empty(len(events), EVENT_DTYPE)
    values["timestamp"] = events["timestamp"].to_numpy()
    for column, name, hashes in (
        ("item_id", "item", hash_items),
        ("action", "action", hash_names),
        ("surface", "surface", hash_names),
    ):
        distinct = pc.unique(events[column])  # hash each name once, not once per event
        codes = pc.index_in(events[column], value_set=distinct).to_numpy()
        values[name] = hashes(distinct.to_pylist())[codes]
    return values


def _users(histories: Histories) -> Int64s:
    return np.repeat(np.arange(histories.count), histories.lengths)


def offsets_of(lengths: npt.NDArray[np.integer]) -> Int64s:
    """The offsets of consecutive slices with these lengths, int64[slices + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
