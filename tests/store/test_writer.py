"""The guarded writer, held against SQLite and Redis alike."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from spoor.activity.history import Histories, equal_rows, merge
from spoor.activity.packing import read_forgotten_through
from spoor.activity.settings import HistorySettings
from spoor.base.errors import DataError, InfrastructureError
from spoor.feature_repo.names import USER_HISTORY
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.cache import HistoryCache
from spoor.store.guarded.redis_guard import _field
from spoor.store.online import OnlineStore, open_online
from spoor.store.rows import EmbeddingRow
from spoor.store.writer import GuardedWriter
from tests.store.toys import DIMENSION, START_MS, ToyEncoder, as_of, events_of
from tests.unreadable import UNREADABLE, plant

HISTORY = HistorySettings(max_events=50)


def writer_of(online: OnlineStore, *encoders: ToyEncoder, **options) -> GuardedWriter:
    return GuardedWriter(online, encoders or [ToyEncoder()], history=HISTORY, **options)


def stored_histories(online: OnlineStore, users: list[str]) -> Histories:
    writer = writer_of(online)
    return writer.update(users, Histories.empty(len(users)), as_of_ms=as_of(users)).histories


def test_history_and_embedding_of_every_release_change_together(online):
    writer = writer_of(online, ToyEncoder("base-1"), ToyEncoder("base-2"))
    users, events = events_of(("ann", "i1", 0), ("bob", "i2", 5), ("ann", "i3", 7))
    result = writer.update(users, events, as_of_ms=as_of(users, 10))
    assert result.users == ["ann", "bob"]
    assert result.changed.all() and result.refused == 0 and result.encode_failures == 0
    for release in ("base-1", "base-2"):
        stored = online.read_embeddings(release, users)
        assert [_facts(row) for row in stored] == [_facts(row) for row in result.rows[release]]
    for user in online.read(users, ["base-1", "base-2"]):
        assert user.revision == 1 and user.embedding_revisions == {"base-1": 1, "base-2": 1}
        assert user.as_of_ms == START_MS + 10


def test_the_same_events_again_change_nothing_and_give_the_stored_rows_for_publication(online):
    encoder = ToyEncoder()
    writer = writer_of(online, encoder)
    users, events = events_of(("ann", "i1", 0), ("bob", "i2", 5))
    first = writer.update(users, events, as_of_ms=as_of(users))
    again = writer.update(users, events, as_of_ms=as_of(users, 99))
    assert not again.changed.any() and again.revisions.tolist() == [1, 1] and encoder.calls == 2
    assert [_facts(row) for row in again.rows["base-1"]] == [_facts(row) for row in first.rows["base-1"]]


def test_a_stale_revision_is_refused_and_merged(online, features):
    cache = HistoryCache(10)
    slow, quick = writer_of(online, cache=cache), writer_of(open_online(features))
    users, first = events_of(("ann", "i1", 0))
    slow.update(users, first, as_of_ms=as_of(users))  # its cache now holds revision 1
    _, second = events_of(("ann", "i2", 1))
    quick.update(users, second, as_of_ms=as_of(users, 1))
    _, third = events_of(("ann", "i3", 2))
    result = slow.update(users, third, as_of_ms=as_of(users, 2))
    assert result.refused == 1 and result.revisions.tolist() == [3]
    _, expected = events_of(("ann", "i1", 0), ("ann", "i2", 1), ("ann", "i3", 2))
    assert equal_rows(result.histories, expected).all()
    assert equal_rows(stored_histories(online, users), expected).all()


def test_a_refused_write_carries_the_later_as_of_time_of_what_it_merged(online, features):
    slow, quick = writer_of(online, cache=HistoryCache(10)), writer_of(open_online(features))
    users, first = events_of(("ann", "i1", 0))
    slow.update(users, first, as_of_ms=as_of(users))
    quick.update(users, events_of(("ann", "i2", 1))[1], as_of_ms=as_of(users, 500))
    result = slow.update(users, events_of(("ann", "i3", 2))[1], as_of_ms=as_of(users, 2))
    assert result.rows["base-1"][0].created_ms == START_MS + 500


def test_updates_in_one_millisecond_and_late_events_are_kept(online):
    writer = writer_of(online)
    for item, time_ms in (("i1", 100), ("i2", 100), ("i3", 100), ("late", 3)):
        users, events = events_of(("ann", item, time_ms))
        writer.update(users, events, as_of_ms=as_of(users, 100))
    _, expected = events_of(("ann", "late", 3), ("ann", "i1", 100), ("ann", "i2", 100), ("ann", "i3", 100))
    assert equal_rows(stored_histories(online, ["ann"]), expected).all()
    row = online.read_embeddings("base-1", ["ann"])[0]
    assert row is not None and row.revision == 4 and row.events_used == 4
    np.testing.assert_allclose(row.embedding, ToyEncoder().encode(expected)[0][0], atol=1e-6)


def test_histories_keep_the_newest_events_only(online):
    writer = GuardedWriter(online, [ToyEncoder()], history=HistorySettings(max_events=2))
    users, events = events_of(("ann", "i1", 1), ("ann", "i2", 2), ("ann", "i3", 3))
    assert writer.update(users, events, as_of_ms=as_of(users)).histories.lengths.tolist() == [2]
    _, older = events_of(("ann", "i0", 0))
    assert not writer.update(users, older, as_of_ms=as_of(users)).changed.any()


def test_eight_concurrent_writers_end_at_the_merge_of_all_events(online, features):
    batches = [_random_batches(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: _write_all(features, batch), batches))
    _assert_merged(online, batches)


def test_eight_concurrent_processes_end_at_the_merge_of_all_events(online, features):
    batches = [_random_batches(seed) for seed in range(8, 16)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_all, args=(features, batch)) for batch in batches]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 8
    _assert_merged(online, batches)


def test_a_write_that_is_let_through_in_the_last_round_counts_and_one_that_never_is_raises(online, monkeypatch):
    monkeypatch.setattr("spoor.store.writer._MAX_ROUNDS", 3)
    write, refusals = online.write, iter([True, True])
    monkeypatch.setattr(
        online, "write", lambda writes: np.zeros(len(writes), bool) if next(refusals, False) else write(writes)
    )
    users, events = events_of(("ann", "i1", 0))
    result = writer_of(online).update(users, events, as_of_ms=as_of(users))
    assert (result.refused, result.revisions.tolist()) == (2, [1])
    monkeypatch.setattr(online, "write", lambda writes: np.zeros(len(writes), bool))
    with pytest.raises(InfrastructureError, match="user 'ann' was changed by others 3 times") as caught:
        writer_of(online).update(users, events_of(("ann", "i2", 1))[1], as_of_ms=as_of(users))
    assert caught.value.hint
    assert online.read(users, [])[0].revision == 1


def test_users_who_are_encoded_while_others_are_merged_and_written_end_as_if_they_took_turns(online, monkeypatch):
    monkeypatch.setattr("spoor.store.writer._USERS_AT_ONCE", 3)
    users, events = events_of(*((f"user-{n % 10}", f"i{n}", n) for n in range(40)))
    with ThreadPoolExecutor(2) as pool:
        writer = writer_of(online, ToyEncoder("base-1"), ToyEncoder("base-2"), executor=pool)
        result = writer.update(users, events, as_of_ms=as_of(users))
    assert result.changed.all() and result.users == users
    expected = ToyEncoder().encode(events)[0]
    for release in ("base-1", "base-2"):
        stored = online.read_embeddings(release, users)
        assert [_facts(row) for row in stored] == [_facts(row) for row in result.rows[release]]
        np.testing.assert_allclose([row.embedding for row in stored], expected, atol=1e-6)
    assert equal_rows(result.histories, events).all()


def test_the_encoder_has_the_next_users_before_the_last_are_written(online, monkeypatch):
    monkeypatch.setattr("spoor.store.writer._USERS_AT_ONCE", 1)
    encoder, second_encoded = ToyEncoder(), threading.Event()
    encode, write = encoder.encode, online.write

    def encode_and_tell(histories):
        if encoder.calls:
            second_encoded.set()
        return encode(histories)

    def write_after_the_next_encode(writes):
        assert second_encoded.wait(60)
        return write(writes)

    monkeypatch.setattr(encoder, "encode", encode_and_tell)
    monkeypatch.setattr(online, "write", write_after_the_next_encode)
    users, events = events_of(("ann", "i1", 0), ("bob", "i2", 0))
    with ThreadPoolExecutor(2) as pool:
        result = writer_of(online, encoder, executor=pool).update(users, events, as_of_ms=as_of(users))
    assert result.revisions.tolist() == [1, 1]


def test_a_write_that_fails_amid_a_batch_is_done_again_whole(online, monkeypatch):
    """What was written of it is found, and merging changes nothing."""
    monkeypatch.setattr("spoor.store.writer._USERS_AT_ONCE", 1)
    write, calls = online.write, iter([1, 2])

    def fails_the_second_time(writes):
        if next(calls, None) == 2:
            raise InfrastructureError("the store is gone")
        return write(writes)

    monkeypatch.setattr(online, "write", fails_the_second_time)
    users, events = events_of(("ann", "i1", 0), ("bob", "i2", 0), ("eve", "i3", 0))
    with ThreadPoolExecutor(2) as pool:
        writer = writer_of(online, executor=pool, cache=HistoryCache(10))
        with pytest.raises(InfrastructureError, match="the store is gone"):
            writer.update(users, events, as_of_ms=as_of(users))
        again = writer.update(users, events, as_of_ms=as_of(users))
    assert again.revisions.tolist() == [1, 1, 1] and again.changed.tolist() == [False, True, True]
    assert [row.user_id for row in again.rows["base-1"]] == users


def test_an_encoder_whose_server_is_away_fails_the_update_and_writes_nothing(online):
    class Away(ToyEncoder):
        def encode(self, histories):
            raise InfrastructureError("its process ended")

    users, events = events_of(("ann", "i1", 0))
    with pytest.raises(InfrastructureError, match="its process ended"):
        writer_of(online, Away()).update(users, events, as_of_ms=as_of(users))
    assert online.read(users, [])[0].history is None


def test_a_user_without_events_gets_no_row(online):
    result = writer_of(online).update(["nobody"], Histories.empty(1), as_of_ms=as_of(["nobody"]))
    assert result.revisions.tolist() == [0] and result.rows == {"base-1": []}
    assert online.read(["nobody"], [])[0].history is None


def test_no_users_is_a_batch_too(online):
    result = writer_of(online).update([], Histories.empty(0), as_of_ms=np.empty(0, np.int64))
    assert result.users == [] and result.histories.count == 0


def test_a_release_that_cannot_encode_waits_for_the_sweep_while_histories_advance(online):
    class Failing(ToyEncoder):
        def encode(self, histories):
            raise RuntimeError("out of memory")

    users, events = events_of(("ann", "i1", 0), ("bob", "i2", 0))
    result = writer_of(online, ToyEncoder("base-1"), Failing("base-2")).update(users, events, as_of_ms=as_of(users))
    assert result.encode_failures == 2 and result.changed.all()
    assert len(result.rows["base-1"]) == 2 and result.rows["base-2"] == []
    assert [user.embedding_revisions for user in online.read(users, ["base-1", "base-2"])] == [
        {"base-1": 1, "base-2": None}
    ] * 2
    sweep = writer_of(online, ToyEncoder("base-1"), ToyEncoder("base-2"))
    swept = sweep.update(users, Histories.empty(2), as_of_ms=as_of(users))
    assert not swept.changed.any() and swept.revisions.tolist() == [1, 1]
    assert [row.revision for row in swept.rows["base-2"]] == [1, 1]


def test_a_postponed_user_s_history_advances_and_the_embedding_follows_when_it_may(online):
    encoder = ToyEncoder()
    writer = writer_of(online, encoder, cache=HistoryCache(10))
    users, first = events_of(("ann", "i1", 0), ("bob", "i2", 5))
    writer.update(users, first, as_of_ms=as_of(users))
    _, second = events_of(("ann", "i3", 10), ("bob", "i4", 15))
    result = writer.update(users, second, as_of_ms=as_of(users, 20), postpone=np.array([True, False]))
    assert result.changed.all() and result.encode_failures == 0
    assert [row.revision for row in result.rows["base-1"]] == [1, 2]  # what is published is what is stored
    ann, bob = online.read(users, ["base-1"])
    assert (ann.revision, ann.embedding_revisions, bob.embedding_revisions) == (2, {"base-1": 1}, {"base-1": 2})
    calls = encoder.calls
    result = writer.update(["ann"], Histories.empty(1), as_of_ms=as_of(["ann"]))
    assert (encoder.calls - calls, result.changed.tolist(), result.rows["base-1"][0].revision) == (1, [False], 2)
    assert result.rows["base-1"][0].created_ms == START_MS + 20


@pytest.mark.parametrize("value", [np.nan, np.inf, 5.0, 0.0])
def test_a_vector_that_may_not_be_stored_waits_and_the_other_users_go_on(online, value):
    class Odd(ToyEncoder):
        def encode(self, histories):
            vectors, used = super().encode(histories)
            vectors[1] = value
            return vectors, used

    users, events = events_of(("ann", "i1", 0), ("bob", "i2", 0), ("cy", "i3", 0))
    result = writer_of(online, Odd()).update(users, events, as_of_ms=as_of(users))
    assert result.encode_failures == 1 and [row.user_id for row in result.rows["base-1"]] == ["ann", "cy"]
    assert online.read_embeddings("base-1", ["bob"]) == [None]
    assert online.read(["bob"], [])[0].revision == 1


def read_values(online: OnlineStore, user: str) -> list[bytes | None]:
    wanted = [(online._view(USER_HISTORY), feature) for feature in ("history", "revision", "events")]
    return next(online._read(wanted, online._keys([user])))


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_history_that_cannot_be_read_sets_its_user_aside_and_nobody_else(online, what, caplog):
    writer = writer_of(online, cache=HistoryCache(10))
    users, first = events_of(("ann", "i1", 0), ("bob", "i2", 5), ("cy", "i3", 6))
    writer.update(users, first, as_of_ms=as_of(users))
    plant(online, "bob", UNREADABLE[what], time_ms=START_MS)
    before = read_values(online, "bob")
    for time in (10, 20):  # the first from a cache, which does not know it yet
        writer.cache.clear()
        _, more = events_of(("ann", "i4", time), ("bob", "i5", time + 1), ("cy", "i6", time + 2))
        result = writer.update(users, more, as_of_ms=as_of(users, time))
        assert (result.set_aside, result.changed.tolist()) == (("bob",), [True, False, True])
        assert result.histories.lengths.tolist() == [1 + time // 10, 0, 1 + time // 10]
        assert [row.user_id for row in result.rows["base-1"]] == ["ann", "cy"]
        assert read_values(online, "bob") == before
    assert [r.message for r in caplog.records if "set aside" in r.message and "'bob'" in r.message] != []
    assert sum("set aside" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("what", UNREADABLE)
def test_who_knows_the_past_replaces_a_history_that_cannot_be_read(online, what):
    writer = writer_of(online)
    users, events = events_of(("ann", "i1", 0), ("bob", "i2", 5), ("bob", "i3", 6))
    writer.update(users, events, as_of_ms=as_of(users))
    plant(online, "bob", UNREADABLE[what], time_ms=START_MS)
    result = writer.update(users, events, as_of_ms=as_of(users), replace_unreadable=True)
    assert (result.set_aside, result.changed.tolist(), result.refused) == ((), [False, True], 0)
    ann, bob = online.read(users, ["base-1"])
    assert (ann.revision, bob.revision > 1) == (1, True)
    assert bob.embedding_revisions == {"base-1": bob.revision}
    assert equal_rows(stored_histories(online, users), events).all()
    nothing = writer.update(["bob"], Histories.empty(1), as_of_ms=as_of(["bob"]))
    assert (nothing.set_aside, nothing.changed.tolist()) == ((), [False])


def test_where_nobody_knows_the_past_an_unreadable_history_stays_as_it_is(online):
    writer = writer_of(online)
    users, events = events_of(("ann", "i1", 0))
    writer.update(users, events, as_of_ms=as_of(users))
    plant(online, "ann", UNREADABLE["no history"], time_ms=START_MS)
    before = read_values(online, "ann")
    result = writer.update(users, Histories.empty(1), as_of_ms=as_of(users), replace_unreadable=True)
    assert (result.set_aside, read_values(online, "ann")) == (("ann",), before)


@pytest.mark.parametrize("what", UNREADABLE)
def test_forgetting_replaces_an_unreadable_history_by_the_marker(online, what):
    writer = writer_of(online)
    users, events = events_of(("ann", "i1", 0))
    writer.update(users, events, as_of_ms=as_of(users))
    plant(online, "ann", UNREADABLE[what], time_ms=START_MS)
    through = np.array([START_MS + 100])
    forgotten = writer.update(
        users, Histories.empty(1), as_of_ms=as_of(users), forget_through=through, replace_unreadable=True
    )
    assert forgotten.set_aside == ()
    (ann,) = online.read(users, ["base-1"])
    assert (ann.has_events, ann.embedding_revisions) == (False, {"base-1": None})
    assert read_forgotten_through([ann.history or b""]).tolist() == through.tolist()
    assert writer.update(users, events, as_of_ms=as_of(users)).forgotten == 1


@pytest.mark.parametrize("lost", ["history", "revision"])
def test_half_a_history_row_is_no_new_user(online, lost, kind):
    """Else one event would take the place of the past, or be refused for ever."""
    writer = writer_of(online)
    users, events = events_of(("ann", "i1", 0))
    writer.update(users, events, as_of_ms=as_of(users))
    if kind == "redis":
        field = _field(online.feast.config, online._view(USER_HISTORY), lost)
        client = online._guard._redis(online.feast.config)
        client.hdel(online._keys(users)[0] + online.feast.config.project.encode(), field)
    else:
        with sqlite3.connect(online.feast.config.online_store.path) as connection:
            table = f"{online.feast.config.project}_{USER_HISTORY}"
            connection.execute(f'DELETE FROM "{table}" WHERE feature_name = ?', (lost,))
        connection.close()
    assert writer.update(users, events, as_of_ms=as_of(users)).set_aside == ("ann",)
    replaced = writer.update(users, events, as_of_ms=as_of(users), replace_unreadable=True)
    assert (replaced.set_aside, replaced.changed.tolist(), replaced.refused) == ((), [True], 0)
    assert equal_rows(stored_histories(online, users), events).all()


def test_zeros_are_stored_where_the_model_knew_no_event(online):
    class KnowsNothing(ToyEncoder):
        def encode(self, histories):
            return np.zeros((histories.count, DIMENSION), np.float32), np.zeros(histories.count, np.int64)

    users, events = events_of(("ann", "i1", 0))
    result = writer_of(online, KnowsNothing()).update(users, events, as_of_ms=as_of(users))
    assert result.encode_failures == 0
    row = online.read_embeddings("base-1", users)[0]
    assert row is not None and row.events_used == 0 and not row.embedding.any()


def test_an_encoder_of_another_dimension_than_the_view_is_refused_at_once(online):
    with pytest.raises(DataError, match="dimension 9, its view in Feast holds 8") as caught:
        writer_of(online, ToyEncoder(dimension=9))
    assert caught.value.hint


def test_output_of_another_dimension_is_refused_before_anything_is_written(online):
    class Short(ToyEncoder):
        def encode(self, histories):
            vectors, used = super().encode(histories)
            return vectors[:, :-1], used

    users, events = events_of(("ann", "i1", 0))
    with pytest.raises(DataError, match="dimension"):
        writer_of(online, Short()).update(users, events, as_of_ms=as_of(users))
    assert online.read(users, [])[0].revision == 0


def test_created_is_the_later_of_as_of_and_trained_through(online):
    future = ToyEncoder("base-1", trained_through_ms=START_MS + 10**9)
    users, events = events_of(("ann", "i1", 0))
    result = writer_of(online, future, ToyEncoder("base-2")).update(users, events, as_of_ms=as_of(users, 7))
    assert result.rows["base-1"][0].created_ms == START_MS + 10**9
    assert result.rows["base-2"][0].created_ms == START_MS + 7


def test_steps_are_observed_in_order(online):
    steps: list[str] = []
    users, events = events_of(("ann", "i1", 0))
    writer_of(online, observe=steps.append).update(users, events, as_of_ms=as_of(users))
    assert steps == ["read", "merged", "encoded", "written"]


def test_a_cached_user_is_not_read_again_and_a_wiped_store_is_noticed(online, features, kind):
    cache = HistoryCache(10)
    writer = writer_of(online, cache=cache)
    users, events = events_of(("ann", "i1", 0))
    assert writer.update(users, events, as_of_ms=as_of(users)).cache_hits == 0
    assert cache.get("ann") is not None
    online.remove_release("base-1")  # behind the writer's back
    result = writer.update(users, events, as_of_ms=as_of(users))
    assert result.cache_hits == 1
    assert [row.revision for row in result.rows["base-1"]] == [1]
    assert online.read_embeddings("base-1", users)[0] is not None


def _random_batches(seed: int) -> list[tuple[list[str], Histories]]:
    rng = np.random.default_rng(seed)
    return [
        events_of(
            *(
                (f"u{rng.integers(4)}", f"i{rng.integers(1000)}", int(rng.integers(-5000, 5000)))
                for _ in range(rng.integers(1, 12))
            )
        )
        for _ in range(6)
    ]


def _write_all(features: FeatureSettings, batches: list[tuple[list[str], Histories]]) -> None:
    writer = writer_of(open_online(features), cache=HistoryCache(3))
    for users, events in batches:
        writer.update(users, events, as_of_ms=as_of(users))


def _assert_merged(online: OnlineStore, batches: list[list[tuple[list[str], Histories]]]) -> None:
    expected: dict[str, Histories] = {}
    for users, events in (batch for writer in batches for batch in writer):
        for k, user in enumerate(users):
            expected[user] = merge(
                expected.get(user, Histories.empty(1)), events.take([k]), max_events=HISTORY.max_events
            )
    users = sorted(expected)
    result = stored_histories(online, users)
    for k, user in enumerate(users):
        assert equal_rows(result.take([k]), expected[user]).all()
    assert sorted(online.user_ids()) == users
    rows = online.read_embeddings("base-1", users)
    for k, user in enumerate(users):
        row = rows[k]
        assert row is not None and row.revision == online.read([user], [])[0].revision
        np.testing.assert_allclose(row.embedding, ToyEncoder().encode(expected[user])[0][0], atol=1e-6)


def _facts(row: EmbeddingRow | None) -> tuple:
    assert row is not None
    return (
        row.user_id,
        row.embedding.tobytes(),
        row.revision,
        row.events_used,
        row.event_time_ms,
        row.created_ms,
        row.computed_at_ms,
        row.model_version,
    )
