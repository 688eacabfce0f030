"""Forgetting through the guarded writer, held against SQLite and Redis alike: what is replayed, late, cached or written
by a zombie does not bring the past back, and what is new counts."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoor.activity.history import EVENT_DTYPE, NEVER, Histories, equal_rows
from spoor.activity.packing import pack, read_forgotten_through, unpack
from spoor.activity.settings import HistorySettings
from spoor.base.errors import UsageError
from spoor.store.cache import HistoryCache
from spoor.store.feast_store import registered_view
from spoor.store.guarded.guard import ViewRow
from spoor.store.guarded.protobytes import int_value
from spoor.store.online import OnlineStore, open_online
from spoor.store.rows import UserWrite
from spoor.store.writer import GuardedWriter, UpdateResult
from tests.store.conftest import make_repo, open_unguarded
from tests.store.toys import START_MS, ToyEncoder, as_of, events_of

RELEASES = ["base-1", "base-2"]
NOW_MS = 1_800_000_000_000  # of every writer here: the revision that a forgetting sets


def writer_of(online: OnlineStore, *, releases: list[str] = RELEASES, max_events: int = 50, **options) -> GuardedWriter:
    encoders, history = [ToyEncoder(release) for release in releases], HistorySettings(max_events=max_events)
    return GuardedWriter(online, encoders, history=history, now_ms=lambda: NOW_MS, **options)


def forget(writer: GuardedWriter, users: list[str], time: int) -> UpdateResult:
    through = np.full(len(users), START_MS + time)
    return writer.update(users, Histories.empty(len(users)), as_of_ms=as_of(users, time), forget_through=through)


def update(writer: GuardedWriter, *events: tuple[str, str, int]) -> UpdateResult:
    users, histories = events_of(*events)
    return writer.update(users, histories, as_of_ms=as_of(users))


def stored(online: OnlineStore, user: str) -> tuple[Histories, int]:
    """The history, and through when it was forgotten, in ms after START_MS."""
    (found,) = online.read([user], [])
    packed = [found.history or pack(Histories.empty(1))[0]]
    through = int(read_forgotten_through(packed)[0])
    return unpack(packed), through if through == NEVER else through - START_MS


def assert_gone(online: OnlineStore, user: str) -> None:
    assert stored(online, user)[0].lengths.tolist() == [0]
    assert all(online.read_embeddings(release, [user]) == [None] for release in RELEASES)


def test_every_row_of_the_user_goes_and_the_neighbours_stay(online: OnlineStore):
    update(writer_of(online), ("ann", "i1", 0), ("bob", "i2", 5))
    view = registered_view(online.feast, online.features, "user_activity")
    wanted = [(view, "user_events_total")]
    for user in ("ann", "bob"):
        row = ViewRow(view, {"user_events_total": int_value(7)}, START_MS, START_MS)
        online._guard.put(online._config, [(online._user_keys.to_bytes(user), row)])
    result = forget(writer_of(online), ["ann"], 100)
    assert (result.changed.tolist(), result.revisions.tolist()) == ([True], [NOW_MS])
    assert result.rows == {"base-1": [], "base-2": []}
    assert_gone(online, "ann")
    assert online.read(["ann"], RELEASES)[0].embedding_revisions == {"base-1": None, "base-2": None}
    keys = [online._user_keys.to_bytes(user) for user in ("ann", "bob")]
    assert online._guard.read_values(online._config, wanted, keys) == [[None], [int_value(7)]]
    assert all(online.read_embeddings(release, ["bob"])[0] is not None for release in RELEASES)


def test_a_replay_changes_nothing_and_is_counted_and_new_events_count(online: OnlineStore):
    writer = writer_of(online, cache=HistoryCache(10))
    update(writer, ("ann", "i1", 0), ("ann", "i2", 100))
    forget(writer, ["ann"], 100)
    replayed = update(writer, ("ann", "i1", 0), ("ann", "i2", 100), ("ann", "late", 50))
    assert (replayed.changed.tolist(), replayed.forgotten, replayed.revisions.tolist()) == ([False], 3, [NOW_MS])
    assert_gone(online, "ann")
    back = update(writer, ("ann", "i2", 100), ("ann", "i3", 101))
    assert (back.forgotten, back.revisions.tolist()) == (1, [NOW_MS + 1])
    assert equal_rows(back.histories, events_of(("ann", "i3", 101))[1]).all()
    assert [row.events_used for row in back.rows["base-1"]] == [1]
    assert stored(online, "ann")[1] == 100  # the marker stays


def test_a_user_without_row_gets_a_marker(online: OnlineStore):
    forget(writer_of(online), ["ann"], 100)
    assert stored(online, "ann")[1] == 100 and online.read(["ann"], [])[0].revision == NOW_MS
    assert update(writer_of(online), ("ann", "i1", 3)).revisions.tolist() == [NOW_MS]
    assert_gone(online, "ann")


def test_forgetting_twice_is_forgetting_once_and_an_earlier_time_takes_nothing_back(online: OnlineStore):
    writer = writer_of(online)
    update(writer, ("ann", "i1", 0))
    assert forget(writer, ["ann"], 100).revisions.tolist() == [NOW_MS]
    for time in (100, 50):
        again = forget(writer, ["ann"], time)
        assert (again.changed.tolist(), again.revisions.tolist()) == ([False], [NOW_MS])
    assert stored(online, "ann")[1] == 100


def test_an_earlier_time_keeps_later_events_with_their_embeddings_anew(online: OnlineStore):
    """Embeddings of a release that nobody loads here are made of the past too, and go."""
    update(writer_of(online), ("ann", "i1", 0), ("ann", "i2", 200))
    result = forget(writer_of(online, releases=["base-1"]), ["ann"], 100)
    _, expected = events_of(("ann", "i2", 200))
    assert equal_rows(result.histories, expected).all()
    row = online.read_embeddings("base-1", ["ann"])[0]
    assert row is not None and (row.revision, row.events_used) == (NOW_MS, 1)
    np.testing.assert_allclose(row.embedding, ToyEncoder().encode(expected)[0][0], atol=1e-6)
    assert online.read_embeddings("base-2", ["ann"]) == [None]
    swept = writer_of(online).update(["ann"], Histories.empty(1), as_of_ms=as_of(["ann"]))
    assert [row.revision for row in swept.rows["base-2"]] == [NOW_MS]


def test_a_zombie_s_write_from_the_forgotten_history_is_refused(online: OnlineStore):
    update(writer_of(online), ("ann", "i1", 0))
    (before,) = online.read(["ann"], [])
    (row,) = online.read_embeddings("base-1", ["ann"])
    assert row is not None and before.history is not None
    forget(writer_of(online), ["ann"], 100)
    write = UserWrite("ann", before.revision, before.revision, before.history, 1, START_MS, START_MS, [row])
    assert online.write([write]).tolist() == [False]
    assert_gone(online, "ann")


def test_a_worker_that_has_the_past_in_its_cache_loses_it(online: OnlineStore, features):
    worker = writer_of(online, cache=HistoryCache(10))
    update(worker, ("ann", "i1", 0))
    forget(writer_of(open_online(features)), ["ann"], 100)
    assert stored_length(worker, "ann") == 1  # it still remembers
    redelivered = update(worker, ("ann", "i1", 0))  # nothing to write, so nothing is refused: the missing rows tell
    assert redelivered.rows == {"base-1": [], "base-2": []} and redelivered.histories.lengths.tolist() == [0]
    assert stored_length(worker, "ann") == 0
    assert_gone(online, "ann")


def test_a_cached_past_is_not_merged_into_a_new_event(online: OnlineStore, features):
    worker = writer_of(online, cache=HistoryCache(10))
    update(worker, ("ann", "i1", 0))
    forget(writer_of(open_online(features)), ["ann"], 100)
    result = update(worker, ("ann", "i2", 200))
    assert (result.refused, result.revisions.tolist()) == (1, [NOW_MS + 1])
    _, expected = events_of(("ann", "i2", 200))
    assert equal_rows(stored(online, "ann")[0], expected).all()
    assert equal_rows(result.histories, expected).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_writers_that_race_a_forgetting_end_at_the_events_after_it(online: OnlineStore, features, seed: int):
    """Four writers with caches replay all events in orders of their own, while a fifth forgets."""
    rng = np.random.default_rng(seed)
    events = [(f"u{rng.integers(3)}", f"i{n}", int(rng.integers(200))) for n in range(60)]
    users = ["u0", "u1", "u2"]

    def replay(order: int) -> None:
        writer = writer_of(open_online(features), cache=HistoryCache(2))
        shuffled = random.Random(order).sample(events, len(events))
        for start in range(0, len(shuffled), 5):
            update(writer, *shuffled[start : start + 5])

    with ThreadPoolExecutor(5) as pool:
        done = [pool.submit(replay, order) for order in range(4)]
        done.append(pool.submit(lambda: forget(writer_of(open_online(features)), users, 120)))
        for future in done:
            future.result()
    for user in users:
        _, expected = events_of(*(event for event in events if event[0] == user and event[2] > 120))
        assert equal_rows(stored(online, user)[0], expected).all()


def test_a_store_without_guard_reads_nulls_afterwards(tmp_path: Path):
    online = open_unguarded(make_repo(tmp_path, {"type": "sqlite"}))
    update(writer_of(online), ("ann", "i1", 0))
    forget(writer_of(online), ["ann"], 100)
    update(writer_of(online), ("ann", "i1", 0))
    assert_gone(online, "ann")


def remove_marker(online: OnlineStore, user: str) -> bool:
    return bool(online.remove({user: online.read([user], [])[0].revision})[0])


def test_a_marker_that_is_removed_leaves_nothing_of_the_user_and_the_neighbours_alone(online: OnlineStore):
    update(writer_of(online), ("ann", "i1", 0), ("bob", "i2", 5))
    forget(writer_of(online), ["ann"], 100)
    view = registered_view(online.feast, online.features, "user_activity")  # may have come back since
    key = online._user_keys.to_bytes("ann")
    online._guard.put(online._config, [(key, ViewRow(view, {"user_events_total": int_value(7)}, START_MS, START_MS))])
    assert online.remove({"ann": NOW_MS, "bob": 7, "cy": 1}).tolist() == [True, False, False]
    assert online.read(["ann"], RELEASES)[0] == online.read(["never-seen"], RELEASES)[0]
    assert list(online.user_ids()) == ["bob"]
    assert online._guard.read_values(online._config, [(view, "user_events_total")], [key]) == [[int_value(7)]]
    assert stored(online, "bob")[0].lengths.tolist() == [1]
    assert all(online.read_embeddings(release, ["bob"])[0] is not None for release in RELEASES)
    assert online.remove({"ann": NOW_MS}).tolist() == [False]  # again: there is none
    assert online.remove({}).tolist() == []


def test_a_redis_key_goes_with_the_last_of_a_user(online: OnlineStore, kind: str, request: pytest.FixtureRequest):
    if kind != "redis":
        pytest.skip("SQLite has no keys")
    forget(writer_of(online), ["ann"], 100)
    client = request.getfixturevalue("redis_server").client()
    assert client.dbsize() == 1 and remove_marker(online, "ann") and client.dbsize() == 0


def test_a_user_who_returned_before_the_removal_keeps_the_row(online: OnlineStore):
    forget(writer_of(online), ["ann"], 100)
    seen = online.read(["ann"], [])[0].revision
    update(writer_of(online), ("ann", "i2", 200))
    assert online.remove({"ann": seen}).tolist() == [False]
    assert stored(online, "ann")[0].lengths.tolist() == [1] and stored(online, "ann")[1] == 100
    assert all(online.read_embeddings(release, ["ann"])[0] is not None for release in RELEASES)


def test_a_worker_that_has_a_removed_marker_in_its_cache_begins_anew(online: OnlineStore, features):
    worker = writer_of(online, cache=HistoryCache(10))
    update(worker, ("ann", "i1", 0))
    forget(worker, ["ann"], 100)
    assert remove_marker(open_online(features), "ann")
    idle = worker.update(["ann"], Histories.empty(1), as_of_ms=as_of(["ann"]))  # nothing to write: nothing is written
    assert idle.histories.lengths.tolist() == [0] and list(online.user_ids()) == []
    result = update(worker, ("ann", "i2", 200))
    assert (result.refused, result.revisions.tolist()) == (1, [1])
    _, expected = events_of(("ann", "i2", 200))
    assert equal_rows(stored(online, "ann")[0], expected).all() and stored(online, "ann")[1] == NEVER
    assert [row.revision for row in result.rows["base-1"]] == [1]


def test_a_marker_in_a_cache_is_not_taken_for_the_row_of_a_user_who_began_anew(online: OnlineStore, features):
    worker, other = writer_of(online, cache=HistoryCache(10)), writer_of(open_online(features))
    forget(worker, ["ann"], 100)  # a user without row
    assert remove_marker(online, "ann")
    update(other, ("ann", "i2", 200))  # its first revision
    result = update(worker, ("ann", "i3", 210))
    _, expected = events_of(("ann", "i2", 200), ("ann", "i3", 210))
    assert result.refused == 1 and equal_rows(stored(online, "ann")[0], expected).all()


def test_a_worker_that_has_the_past_in_its_cache_does_not_bring_it_back_after_the_removal(
    online: OnlineStore, features
):
    worker = writer_of(online, cache=HistoryCache(10))
    update(worker, ("ann", "i1", 0))
    update(worker, ("ann", "i2", 10))  # revision 2
    forget(writer_of(open_online(features)), ["ann"], 100)
    assert remove_marker(open_online(features), "ann") and stored_length(worker, "ann") == 2
    result = update(worker, ("ann", "i3", 200))
    _, expected = events_of(("ann", "i3", 200))
    assert result.refused == 1 and equal_rows(stored(online, "ann")[0], expected).all()


def test_a_past_from_before_the_removal_does_not_meet_its_own_revision_again(online: OnlineStore, features):
    """The user is at the very revision that the worker remembers; by then the worker has forgotten it."""
    now = [0.0]
    worker = writer_of(online, cache=HistoryCache(10, clock=lambda: now[0]))
    update(worker, ("ann", "i1", 0))
    update(worker, ("ann", "i2", 10))  # revision 2
    other = writer_of(open_online(features))
    forget(other, ["ann"], 100)
    assert remove_marker(online, "ann")
    update(other, ("ann", "i3", 200))
    update(other, ("ann", "i4", 210))  # revision 2 again, by a backfill say
    now[0] = 86_400.0  # the least time between the forgetting and the removal
    update(worker, ("ann", "i5", 220))
    _, expected = events_of(("ann", "i3", 200), ("ann", "i4", 210), ("ann", "i5", 220))
    assert equal_rows(stored(online, "ann")[0], expected).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_writers_that_race_a_removal_lose_no_event(online: OnlineStore, features, seed: int):
    """Caching writers bring new events of forgotten users in, while another removes whatever is a marker alone."""
    users = [f"u{n}" for n in range(12)]
    forget(writer_of(online), users, 100)
    start = Barrier(4)

    def return_in(order: int) -> list[tuple[str, str, int]]:
        writer = writer_of(open_online(features), cache=HistoryCache(20))
        writer.update(users, Histories.empty(len(users)), as_of_ms=as_of(users))  # the markers are in its cache
        start.wait(30)
        events = [(user, f"i{order}", 200 + order * 10 + n) for n in range(3) for user in users]
        random.Random(seed * 10 + order).shuffle(events)
        for event in events:
            update(writer, event)
        return events

    def remove() -> int:
        store, removed = open_online(features), 0
        start.wait(30)
        for user in random.Random(seed).sample(users, len(users)):
            (row,) = store.read([user], [])
            if not row.has_events:
                removed += int(store.remove({user: row.revision}).sum())
        return removed

    with ThreadPoolExecutor(4) as pool:
        removing = pool.submit(remove)
        returned = [event for done in [pool.submit(return_in, order) for order in range(3)] for event in done.result()]
        assert removing.result() <= len(users)
    for user in users:
        _, expected = events_of(*(event for event in returned if event[0] == user))
        assert equal_rows(stored(online, user)[0], expected).all()
        assert all(online.read_embeddings(release, [user])[0] is not None for release in RELEASES)


def test_a_store_without_guard_removes_nobody(tmp_path: Path):
    online = open_unguarded(make_repo(tmp_path, {"type": "sqlite"}))
    with pytest.raises(UsageError, match="cannot remove") as raised:
        online.remove({"ann": 1})
    assert raised.value.hint


step = st.one_of(
    st.tuples(st.just("events"), st.lists(st.integers(0, 30), min_size=1, max_size=4)),
    st.tuples(st.just("forget"), st.integers(0, 30)),
)


@pytest.fixture(scope="module")
def one_online(tmp_path_factory: pytest.TempPathFactory) -> OnlineStore:
    return open_online(make_repo(tmp_path_factory.mktemp("repo"), {"type": "sqlite"}))


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(step, min_size=1, max_size=8), repeats=st.lists(st.integers(0, 7), max_size=4), seed=st.randoms())
def test_forgetting_commutes_with_redelivery_and_shuffling(one_online: OnlineStore, steps, repeats, seed):
    """Whatever the order, and however often each is repeated: what is left is the newest events after the latest
    marker. A caching writer and one without cache take turns."""
    user = f"user-{_serial()}"
    sequence = [*steps, *(steps[n % len(steps)] for n in repeats)]
    seed.shuffle(sequence)
    writers = [writer_of(one_online, max_events=5, cache=HistoryCache(10)), writer_of(one_online, max_events=5)]
    for turn, (what, times) in enumerate(sequence):
        if what == "forget":
            forget(writers[turn % 2], [user], times)
        else:
            update(writers[turn % 2], *((user, f"i{time}", time) for time in times))
    marker = max((time for what, time in steps if what == "forget"), default=-1)
    seen = {time for what, times in steps if what == "events" for time in times if time > marker}
    history, through = stored(one_online, user)
    assert (history.values["timestamp"] - START_MS).tolist() == sorted(seen)[-5:]
    assert through == (marker if marker >= 0 else NEVER)
    embedded = [one_online.read_embeddings(release, [user])[0] is not None for release in RELEASES]
    assert embedded == [bool(seen)] * 2


def stored_length(writer: GuardedWriter, user: str) -> int:
    cached = writer.cache.get(user)
    assert cached is not None and cached.history is not None
    return int(unpack([cached.history]).lengths[0])


_numbers = iter(range(10**9))


def _serial() -> int:
    return next(_numbers)


def test_after_keeps_each_user_s_own_later_events():
    values = np.zeros(4, EVENT_DTYPE)
    values["timestamp"] = [1, 2, 1, 2]
    both = Histories.of([values[:2], values[2:]])
    assert both.after(np.array([1, NEVER])).lengths.tolist() == [1, 2]
    assert both.after(np.array([2, 5])).lengths.tolist() == [0, 0]
    assert both.after(np.array([NEVER, NEVER])) is both
