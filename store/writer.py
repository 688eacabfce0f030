"""The one writer: events in, merged histories and fresh embeddings in the store.

For a batch of users, each at most once:
1. read the stored histories and revisions (cache, else store);
2. merge the new events;
3. encode whose history changed or whose embedding lags behind its history;
4. write under the revision that was read;
5. who was refused goes through all of it again with what the store then holds.

However many writers run at once, each user ends at the merge of all events. A user who was forgotten has a marker in
the packed history: merging keeps the later marker and drops events up to it, so what is replayed from before it, or
merged by a writer that still remembers, has no effect (docs/decisions/0007-forgetting.md).

A stored history that cannot be read sets its user aside: nothing of the user is written, so that one new event does not
take the place of a past that may still be restored. A caller that knows the past (the lake's) has it replaced.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spoor.activity.history import NEVER, Histories, Values, equal_rows, merge
from spoor.activity.packing import pack, unpack_readable
from spoor.activity.settings import HistorySettings
from spoor.base.errors import InfrastructureError
from spoor.store.cache import HistoryCache
from spoor.store.encoding import Bools, Encoder, Int64s, Part, encode, wrong_dimension
from spoor.store.online import OnlineStore
from spoor.store.rows import EmbeddingRow, StoredUser, UserWrite

_MAX_ROUNDS = 100
_QUIET_ROUNDS = 3  # refusals before a writer waits a moment for the others
_LONGEST_WAIT_SECONDS = 0.1
_MOST_TOLD = 10_000  # users set aside that the log names one by one
_USERS_AT_ONCE = 128  # encoded while others are merged and written
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """Where every user of the batch stands after the update, in the batch's order."""

    users: list[str]
    histories: Histories
    revisions: Int64s  # int64[U]; 0 for a user without any event
    rows: dict[str, list[EmbeddingRow]]  # by release; who has no embedding yet is left out
    changed: Bools  # bool[U]: the history changed by this update, not by a try before it that failed midway
    refused: int  # writes that had to be done again
    encode_failures: int  # embeddings that wait for the sweep
    forgotten: int = 0  # events of the batch that are a forgotten user's past, and were left out
    cache_hits: int = 0  # users whose stored state was in the cache
    set_aside: tuple[str, ...] = ()  # users whose stored history cannot be read: nothing of them was written

    @cached_property
    def behind(self) -> dict[str, set[str]]:
        """Release → users with events whose embedding is behind their history or missing."""
        revisions = dict(zip(self.users, self.revisions.tolist(), strict=True))
        with_history = {self.users[row] for row in np.flatnonzero(self.histories.lengths > 0)}
        return {
            release: with_history - {row.user_id for row in rows if row.revision == revisions[row.user_id]}
            for release, rows in self.rows.items()
        }


@dataclass(eq=False)
class _Batch:
    """The update under way. Arrays and lists hold one entry per user of the batch."""

    users: list[str]
    events: Histories
    as_of_ms: Int64s
    partitions: Sequence[int | None]
    merged: list[Values]
    revisions: Int64s
    changed: Bools
    rows: dict[str, list[EmbeddingRow | None]]
    forget_through: Int64s
    forgotten: Int64s
    postpone: Bools
    replace_unreadable: bool
    set_aside: set[str]
    refused: int = 0
    cache_hits: int = 0
    encode_failures: int = 0


class GuardedWriter:
    """`encoders`: one per live release; the embeddings of all are written with the history. `executor`: where they
    encode some users of a batch while others are merged and written; None: they take turns.
    `observe` is called in the caller's thread at the end of each step, with "read", "merged", "encoded" (waited for, if
    there is an executor) or "written": metrics hang there."""

    def __init__(
        self,
        online: OnlineStore,
        encoders: Sequence[Encoder],
        *,
        history: HistorySettings,
        cache: HistoryCache | None = None,
        executor: Executor | None = None,
        observe: Callable[[str], None] = lambda step: None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        for encoder in encoders:
            expected = online.dimension(encoder.release)
            if encoder.dimension != expected:
                raise wrong_dimension(encoder.release, encoder.dimension, expected)
        self.online = online
        self.encoders = {encoder.release: encoder for encoder in encoders}
        self.history = history
        self.cache = cache if cache is not None else HistoryCache(0)
        self._executor = executor
        self.observe = observe
        self.now_ms = now_ms
        self._told: set[str] = set()  # users of whom the log has said that they are set aside

    def update(
        self,
        user_ids: Sequence[str],
        events: Histories,
        *,
        as_of_ms: Int64s,
        partitions: Sequence[int | None] | None = None,
        forget_through: Int64s | None = None,
        postpone: Bools | None = None,
        replace_unreadable: bool = False,
    ) -> UpdateResult:
        """Merges `events` (one row per user, may be empty) into the stored histories.

        `as_of_ms` int64[U]: from when on the events were known. `partitions`: of each user, for the cache.
        `forget_through` int64[U] in ms, NEVER for nobody: events up to then go, from now on for good, and with them
        the user's rows in every other view; embeddings of what is left are written as ever.
        `postpone` bool[U]: whose embeddings stay as they are although the history advances.
        `replace_unreadable`: a stored history that cannot be read gives way to `events`, where these or
        `forget_through` say anything; else its user is set aside.
        Raises DataError for embeddings of another dimension than the release's, InfrastructureError where the store
        fails or other writers never let this one through. Embeddings that the encoder could not compute, or that are
        not finite or not of norm 1, are counted and left for the sweep.
        """
        count = len(user_ids)
        if not events.count == count == len(as_of_ms) == len(set(user_ids)):
            raise ValueError(f"{count} users with {events.count} histories; each user may come once")
        batch = _Batch(
            users=list(user_ids),
            events=events,
            as_of_ms=np.asarray(as_of_ms, np.int64),
            partitions=[None] * count if partitions is None else partitions,
            merged=[events.values[:0]] * count,
            revisions=np.zeros(count, np.int64),
            changed=np.zeros(count, bool),
            rows={release: [None] * count for release in self.encoders},
            forget_through=np.full(count, NEVER) if forget_through is None else np.asarray(forget_through, np.int64),
            forgotten=np.zeros(count, np.int64),
            postpone=np.zeros(count, bool) if postpone is None else postpone,
            replace_unreadable=replace_unreadable,
            set_aside=set(),
        )
        pending = np.arange(count)
        for attempt in range(_MAX_ROUNDS):
            if attempt > _QUIET_ROUNDS:
                time.sleep(random.uniform(0, min(_LONGEST_WAIT_SECONDS, 0.001 * 2**attempt)))
            if len(pending):
                pending = self._round(batch, pending, cached=attempt == 0)
            if not len(pending):
                return self._result(batch)
        raise InfrastructureError(
            f"user {batch.users[int(pending[0])]!r} was changed by others {_MAX_ROUNDS} times while it was written",
            hint="run fewer writers on the same users",
        )

    def drop(self, release: str) -> None:
        """From now on the release is neither encoded nor written. Not while another thread updates; what an update that
        has failed still encodes does not matter."""
        del self.encoders[release]

    def _round(self, batch: _Batch, pending: Int64s, *, cached: bool) -> Int64s:
        """One pass over the users at positions `pending`; returns the positions to be done again. With an executor,
        some users are encoded while others are merged or written."""
        parts = 1 if self._executor is None else -(-len(pending) // _USERS_AT_ONCE)
        again: list[Int64s] = []
        encoding: Callable[[], Part] | None = None
        for some in np.array_split(pending, parts):
            following = self._begin_to_encode(batch, self._merge(batch, some, cached=cached))
            if encoding is not None:
                again.append(self._write(batch, encoding()))
            encoding = following
        if encoding is not None:
            again.append(self._write(batch, encoding()))
        return np.concatenate(again)

    def _merge(self, batch: _Batch, positions: Int64s, *, cached: bool) -> Part:
        users = [batch.users[i] for i in positions]
        stored, from_cache = self._load(users, cached=cached)
        self.observe("read")

        before, marked, unreadable = unpack_readable([user.history for user in stored])
        through = np.maximum(marked, batch.forget_through[positions])
        events = batch.events.take(positions)
        fresh_events = events.after(through)
        if unreadable.any():
            replaced = batch.replace_unreadable & ((fresh_events.lengths > 0) | (through > NEVER))
            if (aside := unreadable & ~replaced).any():
                kept = np.flatnonzero(~aside)
                self._set_aside(batch, [users[k] for k in np.flatnonzero(aside)])
                return self._merge(batch, positions[kept], cached=cached)
            _log.warning("%d stored histories cannot be read and are replaced", int(unreadable.sum()))
        batch.cache_hits += int(from_cache.sum())
        batch.forgotten[positions] = events.lengths - fresh_events.lengths
        after = merge(before.after(through), fresh_events, max_events=self.history.max_events)
        forgets = through > marked
        changed = ~equal_rows(before, after) | forgets
        as_of = np.array([user.as_of_ms for user in stored], np.int64)
        as_of[changed] = np.maximum(as_of, batch.as_of_ms[positions])[changed]
        expected = np.array([user.revision for user in stored], np.int64)
        # The row may be removed later, and its user begin at 1 again (OnlineStore.remove): whoever still expects the
        # revision of a forgetting must not meet it a second time, so a clock gives it. It also gives the revision after
        # one that cannot be read.
        lost = np.array([user.unreadable_revision is not None for user in stored], bool)
        revisions = np.where(forgets | lost, np.maximum(expected + 1, self.now_ms()), expected + changed)
        packed = pack(after, through)
        self.observe("merged")
        return Part(
            positions=positions,
            users=users,
            stored=stored,
            from_cache=from_cache,
            histories=after,
            packed=packed,
            changed=changed,
            forgets=forgets,
            as_of_ms=as_of,
            expected=expected,
            revisions=revisions,
        )

    def _set_aside(self, batch: _Batch, users: list[str]) -> None:
        """Says so once of each user."""
        batch.set_aside.update(users)
        for user in users:
            self.cache.drop(user)
            if user not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(user)
                _log.error(
                    "user %r is set aside: the stored history cannot be read, so nothing is written over it; "
                    "`spoor archive`, then `spoor verify --repair` rebuild it from the lake",
                    user,
                )

    def _begin_to_encode(self, batch: _Batch, part: Part) -> Callable[[], Part]:
        """Returns what waits for the end."""
        encoders = list(self.encoders.values())
        wanted = ~batch.postpone[part.positions]
        if self._executor is not None:
            return self._executor.submit(encode, part, encoders, wanted, self.now_ms).result
        encode(part, encoders, wanted, self.now_ms)
        return lambda: part

    def _write(self, batch: _Batch, part: Part) -> Int64s:
        """Returns the positions to be done again."""
        self.observe("encoded")
        batch.encode_failures += part.failures
        users, histories = part.users, part.histories
        last_times, lengths = histories.last_times(), histories.lengths
        rows, writes = [], []
        for k, user in enumerate(users):
            embeddings = [row for of_release in part.rows.values() if (row := of_release[k]) is not None]
            if part.changed[k] or embeddings:
                write = UserWrite(
                    user_id=user,
                    expected_revision=int(part.expected[k]),
                    revision=int(part.revisions[k]),
                    history=part.packed[k],
                    events=int(lengths[k]),
                    event_time_ms=int(last_times[k]),
                    as_of_ms=int(part.as_of_ms[k]),
                    embeddings=embeddings,
                    forgets=bool(part.forgets[k]),
                    unreadable_revision=part.stored[k].unreadable_revision,
                )
                rows.append(k)
                writes.append(write)
        again = np.zeros(len(users), bool)
        again[rows] = ~self.online.write(writes) if writes else False
        self.observe("written")

        batch.refused += int(again.sum())
        batch.changed[part.positions] |= part.changed & ~again
        again |= self._read_back(part, refused=again)
        for k, position in enumerate(part.positions):
            if again[k]:
                self.cache.drop(users[k])
                continue
            batch.merged[position] = histories[k]
            batch.revisions[position] = part.revisions[k]
            for release, of_release in part.rows.items():
                batch.rows[release][position] = of_release[k]
            if part.revisions[k]:
                state = StoredUser(
                    part.packed[k],
                    int(part.revisions[k]),
                    {release: _revision(of_release[k]) for release, of_release in part.rows.items()},
                    int(part.as_of_ms[k]),
                )
                self.cache.put(users[k], state, partition=batch.partitions[position])
        return part.positions[again]

    def _load(self, users: list[str], *, cached: bool) -> tuple[list[StoredUser], Bools]:
        """The users' stored state, and for whom it is from the cache."""
        found = [self.cache.get(user) if cached else None for user in users]
        hits = np.array([f is not None and f.embedding_revisions.keys() == self.encoders.keys() for f in found], bool)
        missing = np.flatnonzero(~hits)
        read = self.online.read([users[k] for k in missing], list(self.encoders)) if len(missing) else []
        for k, user in zip(missing, read, strict=True):
            found[k] = user
        return [user for user in found if user is not None], hits

    def _read_back(self, part: Part, *, refused: Bools) -> Bools:
        """Adds the stored rows of users that were not encoded. Returns for whom the cache was wrong."""
        stale = np.zeros(len(part.users), bool)
        for release, rows in part.rows.items():
            before = [user.embedding_revisions[release] for user in part.stored]
            missing = [k for k, row in enumerate(rows) if row is None and not refused[k] and before[k] is not None]
            if not missing:
                continue
            read = self.online.read_embeddings(release, [part.users[k] for k in missing])
            for k, row in zip(missing, read, strict=True):
                rows[k] = row
                stale[k] |= bool(part.from_cache[k]) and _revision(row) != before[k]
        return stale

    def _result(self, batch: _Batch) -> UpdateResult:
        return UpdateResult(
            users=batch.users,
            histories=Histories.of(batch.merged),
            revisions=batch.revisions,
            rows={release: [row for row in rows if row is not None] for release, rows in batch.rows.items()},
            changed=batch.changed,
            refused=batch.refused,
            encode_failures=batch.encode_failures,
            forgotten=int(batch.forgotten.sum()),
            cache_hits=batch.cache_hits,
            set_aside=tuple(sorted(batch.set_aside)),
        )


def _revision(row: EmbeddingRow | None) -> int | None:
    return None if row is None else row.revision
