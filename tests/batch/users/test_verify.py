from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spoor.activity.events import Event
from spoor.activity.history import Histories
from spoor.activity.packing import pack, read_forgotten_through, unpack
from spoor.base.errors import DataError
from spoor.batch.forget.forget import run_forget
from spoor.batch.forget.merge_users import run_merge_users
from spoor.batch.kafka.archive import open_lake, run_archive
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.verify import VerifyResult, run_verify
from spoor.batch.users.verify_steps import (
    EMBEDDING_DIFFERS,
    HISTORY_DIFFERS,
    KINDS,
    MISSING_USER,
    REVISION_BEHIND,
    UNEXPECTED_USER,
    UNREADABLE_HISTORY,
)
from spoor.config import Settings
from spoor.feature_repo.names import USER_HISTORY, user_embedding_view
from spoor.store import repo
from spoor.store.guarded.guard import ViewRow
from spoor.store.online import OnlineStore, open_online
from spoor.store.rows import EmbeddingRow, UserWrite
from tests.batch.conftest import TRAINED_THROUGH_MS
from tests.conftest import free_port
from tests.earlier_version import old_packed
from tests.unreadable import UNREADABLE, plant

Last = Callable[[Settings, str], dict[str, EmbeddingRow]]


def _online(world: Any) -> OnlineStore:
    return open_online(world.settings.features)


def _overwrite(
    online: OnlineStore, user_id: str, *, history: Histories | bytes, embeddings: str = "renew", new: bool = False
) -> None:
    """Plants another history for the user, past the writer that would have merged it. `embeddings`: `renew` gives them
    the new revision, `keep` leaves them behind."""
    (stored,) = online.read([user_id], ["base-1"])
    (row,) = online.read_embeddings("base-1", ["user-1" if new else user_id])
    assert row is not None
    revision = stored.revision + 1
    rows = [dataclasses.replace(row, user_id=user_id, revision=revision)] if embeddings == "renew" else []
    packed = history if isinstance(history, bytes) else pack(history)[0]
    write = UserWrite(user_id, stored.revision, revision, packed, 1, 900_000_000_000, 900_000_000_000, rows)
    assert online.write([write]).all()


def _history(online: OnlineStore, user_id: str) -> Histories:
    (stored,) = online.read([user_id], [])
    return unpack([stored.history or b""])


def _plant_embedding(online: OnlineStore, user_id: str) -> None:
    """Another vector under the same revision."""
    (stored,) = online.read([user_id], [])
    (row,) = online.read_embeddings("base-1", [user_id])
    assert row is not None
    other = dataclasses.replace(row, embedding=-row.embedding)
    packed = stored.history or b""
    write = UserWrite(user_id, row.revision, row.revision, packed, 8, row.event_time_ms, stored.as_of_ms, [other])
    assert online.write([write]).all()


def _put(online: OnlineStore, user_id: str, view: str, values: dict[str, bytes]) -> None:
    """Plants bytes as features of the user, as somebody else would who writes the view."""
    row = ViewRow(online._view(view), values, 900_000_000_000, 900_000_000_000)
    online._guard.put(online.feast.config, [(online._keys([user_id])[0], row)])


def _kinds(result: VerifyResult) -> dict[str, int]:
    return {kind: count for kind, count in result.kinds.items() if count}


def _told(settings: Settings) -> str:
    return run_verify(settings).text()


def test_after_a_backfill_nothing_differs(filled: Any) -> None:
    result = run_verify(filled.settings)
    assert (result.users, result.differences, result.examples) == (20, 0, [])
    assert result.kinds == dict.fromkeys(KINDS, 0)
    assert (result.releases, result.lag) == (("base-1",), {0: 0, 1: 0})
    assert (result.rows, result.stale_rows) == ({"base-1": 20}, {"base-1": 0})


def test_a_user_that_was_not_backfilled_is_missing(filled: Any) -> None:
    filled.produce([event._replace(user_id="user-new") for event in filled.events(2, 3)], 1)
    run_archive(filled.settings)
    result = run_verify(filled.settings)
    assert (_kinds(result), result.users) == ({MISSING_USER: 1}, 21)
    assert [(example.user_id, example.kind) for example in result.examples] == [("user-new", MISSING_USER)]
    assert run_verify(filled.settings, repair=True).remaining == 0


def test_a_user_that_only_the_store_knows_is_unexpected_and_kept(filled: Any) -> None:
    online = _online(filled)
    _overwrite(online, "stranger", history=_history(online, "user-1"), new=True)
    result = run_verify(filled.settings)
    assert (_kinds(result), result.users) == ({UNEXPECTED_USER: 1}, 21)
    mended = run_verify(filled.settings, repair=True)
    assert (mended.repaired, mended.remaining_kinds[UNEXPECTED_USER]) == (0, 1)
    assert "spoor archive" not in mended.text()  # Kafka has nothing more
    assert online.read(["stranger"], [])[0].history is not None


def test_an_event_that_the_store_lacks_is_found_and_mended(filled: Any) -> None:
    online = _online(filled)
    whole = _history(online, "user-3")
    shorter = Histories.of([whole[0][:-1]])
    _overwrite(online, "user-3", history=shorter)
    result = run_verify(filled.settings)
    assert result.kinds[HISTORY_DIFFERS] == 1
    assert "1 only in the lake" in result.examples[0].detail
    mended = run_verify(filled.settings, repair=True)
    assert mended.remaining == 0 and mended.repaired == mended.differences > 0
    assert _history(online, "user-3").values.tolist() == whole.values.tolist()
    assert run_verify(filled.settings).differences == 0


def test_histories_of_an_earlier_version_are_no_differences_and_a_repair_rewrites_them(filled: Any) -> None:
    online = _online(filled)
    before = {user: _history(online, user) for user in ("user-3", "user-5")}
    for user, history in before.items():
        _overwrite(online, user, history=old_packed(history[0]))
    shorter = Histories.of([before["user-5"][0][:-1]])
    _overwrite(online, "user-5", history=old_packed(shorter[0]))
    result = run_verify(filled.settings)
    assert (_kinds(result), result.outdated) == ({HISTORY_DIFFERS: 1, EMBEDDING_DIFFERS: 1}, 1)
    assert "1 only in the lake" in next(e.detail for e in result.examples if e.kind == HISTORY_DIFFERS)
    mended = run_verify(filled.settings, repair=True)
    assert (mended.remaining, mended.outdated) == (0, 0)
    for user, history in before.items():
        assert _history(online, user).values.tolist() == history.values.tolist()
        assert (online.read([user], [])[0].history or b"")[3] == 2  # the codec version
    assert (run_verify(filled.settings).differences, run_verify(filled.settings).outdated) == (0, 0)


def test_a_backfill_over_histories_of_an_earlier_version_doubles_nothing(filled: Any) -> None:
    online = _online(filled)
    before = {f"user-{n}": _history(online, f"user-{n}") for n in range(20)}
    for user, history in before.items():
        _overwrite(online, user, history=old_packed(history[0]))
    assert run_verify(filled.settings).outdated == 20
    assert run_backfill(filled.settings).changed == 20
    for user, history in before.items():
        assert _history(online, user).values.tolist() == history.values.tolist()
    result = run_verify(filled.settings)
    assert (result.differences, result.outdated) == (0, 0)


def test_an_event_that_the_lake_lacks_is_reported_and_kept(filled: Any) -> None:
    online = _online(filled)
    newer = _history(online, "user-4").values.copy()
    newer["timestamp"] += 1
    _overwrite(online, "user-4", history=Histories.of([newer]))
    assert run_verify(filled.settings).kinds[HISTORY_DIFFERS] == 1
    mended = run_verify(filled.settings, repair=True)
    assert mended.remaining_kinds[HISTORY_DIFFERS] == 1
    assert mended.remaining_kinds[EMBEDDING_DIFFERS] == mended.remaining_kinds[REVISION_BEHIND] == 0
    kept = {event[0] for event in _history(online, "user-4").values.tolist()}
    assert int(newer["timestamp"].max()) in kept


def test_an_embedding_left_behind_is_found_and_mended(filled: Any) -> None:
    online = _online(filled)
    _overwrite(online, "user-5", history=_history(online, "user-5"), embeddings="keep")
    result = run_verify(filled.settings)
    assert _kinds(result) == {REVISION_BEHIND: 1}
    assert result.examples[0].detail == "embedding of revision 1, history of 2"
    assert run_verify(filled.settings, repair=True).remaining == 0


def test_another_vector_under_the_same_revision_is_found_mended_and_published(filled: Any, last_records: Last) -> None:
    online = _online(filled)
    _plant_embedding(online, "user-6")
    result = run_verify(filled.settings)
    assert _kinds(result) == {EMBEDDING_DIFFERS: 1}
    assert (result.examples[0].user_id, result.examples[0].release) == ("user-6", "base-1")
    assert run_verify(filled.settings, repair=True).repaired == 1
    assert run_verify(filled.settings).differences == 0
    (row,) = online.read_embeddings("base-1", ["user-6"])
    assert row is not None
    record = last_records(filled.settings, "base-1")["user-6"]
    assert record.computed_at_ms == row.computed_at_ms
    assert np.array_equal(record.embedding, row.embedding)


def test_an_embedding_that_cannot_be_read_is_found_and_mended(filled: Any) -> None:
    online = _online(filled)
    (row,) = online.read_embeddings("base-1", ["user-6"])
    assert row is not None
    short = online._embedding_view_row(dataclasses.replace(row, embedding=row.embedding[:3]))
    online._guard.put(online.feast.config, [(online._keys(["user-6"])[0], short)])
    result = run_verify(filled.settings)
    assert _kinds(result) == {EMBEDDING_DIFFERS: 1} and result.rows == {"base-1": 19}
    assert run_verify(filled.settings, repair=True).remaining == 0
    (mended,) = online.read_embeddings("base-1", ["user-6"])
    assert mended is not None and np.allclose(mended.embedding, row.embedding, atol=1e-5)


def test_unreadable_histories_are_named_and_give_way_to_the_lakes(
    filled: Any, caplog: pytest.LogCaptureFixture
) -> None:
    online = _online(filled)
    users = [f"user-{n}" for n in range(len(UNREADABLE))]
    whole = {user: _history(online, user).values.tolist() for user in users}
    for user, values in zip(users, UNREADABLE.values(), strict=True):
        plant(online, user, values, time_ms=900_000_000_000)
    result = run_verify(filled.settings)
    assert result.kinds[UNREADABLE_HISTORY] == len(users) == result.remaining_kinds[UNREADABLE_HISTORY]
    assert result.kinds[HISTORY_DIFFERS] == result.kinds[MISSING_USER] == result.kinds[UNEXPECTED_USER] == 0
    named = {each.user_id: each.detail for each in result.examples if each.kind == UNREADABLE_HISTORY}
    assert set(named) == set(users)
    assert named["user-0"] == "its bytes cannot be read; 8 events in the lake"
    mended = run_verify(filled.settings, repair=True)
    assert (mended.remaining, mended.repaired) == (0, mended.differences)
    assert {user: _history(online, user).values.tolist() for user in users} == whole
    assert run_verify(filled.settings).differences == 0
    assert 'kind="unreadable history"' in (filled.settings.state_folder / "metrics" / "spoor_verify.prom").read_text()


def test_an_unreadable_history_of_a_user_that_the_lake_lacks_stays_and_goes_with_forget(filled: Any) -> None:
    online = _online(filled)
    _overwrite(online, "stranger", history=b"not a packed history", new=True)
    for repair in (False, True):
        result = run_verify(filled.settings, repair=repair)
        assert result.remaining_kinds[UNREADABLE_HISTORY] == 1 == sum(result.remaining_kinds.values())
    assert "the lake has no event" in result.examples[0].detail
    run_forget(filled.settings, ["stranger"])
    assert run_verify(filled.settings).differences == 0


def test_a_backfill_rebuilds_unreadable_histories_and_its_sweep_leaves_out_the_others(filled: Any) -> None:
    online = _online(filled)
    whole = _history(online, "user-7").values.tolist()
    plant(online, "user-7", UNREADABLE["no history"], time_ms=900_000_000_000)
    damaged = bytearray(online.read(["user-1"], [])[0].history or b"")
    damaged[-1] ^= 1
    _overwrite(online, "stranger", history=bytes(damaged), embeddings="keep", new=True)  # behind, and unreadable
    result = run_backfill(filled.settings)
    assert (result.changed, result.encode_failures) == (1, 0)
    assert _history(online, "user-7").values.tolist() == whole
    assert _kinds(run_verify(filled.settings)) == {UNREADABLE_HISTORY: 1}


def test_forgetting_and_merging_users_with_an_unreadable_history(filled: Any) -> None:
    online = _online(filled)
    for user in ("user-2", "user-7"):
        plant(online, user, UNREADABLE["no history"], time_ms=900_000_000_000)
    for pair in (("user-7", "user-3"), ("user-3", "user-7")):
        with pytest.raises(DataError, match="damaged packed history") as caught:
            run_merge_users(filled.settings, *pair)
        assert "verify --repair" in (caught.value.hint or "")
    assert run_forget(filled.settings, ["user-2"]).lake_rows > 0
    assert read_forgotten_through([online.read(["user-2"], [])[0].history or b""])[0] > 900_000_000_000
    assert _kinds(run_verify(filled.settings)) == {UNREADABLE_HISTORY: 1}


def test_an_as_of_time_that_feast_cannot_read_is_mended(filled: Any) -> None:
    online = _online(filled)
    whole = _history(online, "user-7").values.tolist()
    _put(online, "user-7", USER_HISTORY, {"as_of_ms": b"\xff\xff\xff"})
    _overwrite(online, "user-8", history=_history(online, "user-8"), embeddings="keep")
    assert _kinds(run_verify(filled.settings)) == {REVISION_BEHIND: 1}
    assert run_verify(filled.settings, repair=True).remaining == 0
    assert _history(online, "user-7").values.tolist() == whole


def test_a_revision_of_an_embedding_that_feast_cannot_read_is_mended(filled: Any) -> None:
    online = _online(filled)
    _put(online, "user-7", user_embedding_view("base-1"), {"revision": b"\xff\xff\xff"})
    assert _kinds(run_verify(filled.settings)) == {REVISION_BEHIND: 1}
    assert run_verify(filled.settings, repair=True).remaining == 0


@pytest.mark.parametrize("repair", [False, True])
def test_a_verify_that_fails_leaves_no_list_of_users(filled: Any, repair: bool) -> None:
    """They may be forgotten before the next one."""
    open_lake(filled.settings.lake).files()[0].unlink()
    with pytest.raises(DataError, match="cannot read lake file"):
        run_verify(filled.settings, repair=repair)
    named = [path for path in filled.settings.state_folder.rglob("*.json") if b'"user-1"' in path.read_bytes()]
    assert named == []


def test_every_live_release_is_compared(filled: Any) -> None:
    filled.add_release("base-2", seed=5)
    result = run_verify(filled.settings)
    assert _kinds(result) == {REVISION_BEHIND: 20}
    assert {example.release for example in result.examples} == {"base-2"}
    assert result.rows == {"base-1": 20, "base-2": 0} and result.stale_rows == {"base-1": 0, "base-2": 20}
    mended = run_verify(filled.settings, repair=True)
    assert mended.remaining == 0 and mended.stale_rows["base-2"] == 0
    told = (filled.settings.state_folder / "metrics" / "spoor_verify.prom").read_text()
    assert 'spoor_verify_rows{release="base-1"} 20.0' in told
    assert 'spoor_verify_stale_rows{release="base-2"} 0.0' in told


def test_users_of_the_lake_that_the_entity_cannot_hold_are_counted_and_stop_nobody(filled: Any, tmp_path: Path) -> None:
    """A lake of text ids under settings that have turned int64: two users still fit."""
    before = filled.settings
    filled.produce([Event(user, "item-1", "view", "web", TRAINED_THROUGH_MS) for user in ("7", "8")], 0)
    run_archive(before)
    features = dataclasses.replace(
        before.features, feature_repo=tmp_path / "int64" / "feature_repo", user_id_type="int64", served_folder=None
    )
    events = dataclasses.replace(before.events, user_id_type="int64")
    state = tmp_path / "int64" / "state"
    settings = dataclasses.replace(before, features=features, events=events, state_folder=state)
    repo.create_repo(features.feature_repo, online_store={"type": "sqlite"}, state_folder=state / "feast")
    repo.apply(features)
    backfilled = run_backfill(settings)
    assert (backfilled.rows, backfilled.unfit_ids) == (2, 20)
    verified = run_verify(settings)
    assert (verified.users, verified.differences, verified.unfit_ids) == (2, 0, 20)
    assert "20 users of the lake have ids that are no int64, and no rows" in verified.text()


def test_what_is_not_archived_yet_is_counted(filled: Any) -> None:
    filled.produce(filled.events(3, 7), 1)
    result = run_verify(filled.settings)
    assert (result.differences, result.lag) == (0, {0: 0, 1: 7})
    assert result.text() == "20 users, 0 differences; 7 records in Kafka are not in the lake yet"
    events = result.lake_events
    _overwrite(_online(filled), "stranger", history=_history(_online(filled), "user-1"), new=True)
    for repair in (False, True):
        told = run_verify(filled.settings, repair=repair).text()
        archive = f"the lake holds {events} events, and Kafka has 7 records that it lacks: run `spoor archive` first"
        assert archive in told


def test_an_empty_lake_is_named_as_the_reason_and_archive_as_the_way_out(filled: Any, tmp_path: Path) -> None:
    events = run_verify(filled.settings).lake_events
    elsewhere = dataclasses.replace(filled.settings.lake, folder=tmp_path / "nothing-yet")
    empty = dataclasses.replace(filled.settings, lake=elsewhere)
    assert f"the lake is empty, and Kafka has {events} records that it lacks: run `spoor archive` f" in _told(empty)
    run_archive(empty)  # the hint, followed
    assert _told(empty) == "20 users, 0 differences"
    nothing = dataclasses.replace(elsewhere, folder=tmp_path / "nothing-there")
    down = dataclasses.replace(filled.settings.kafka, port=free_port(), request_timeout_seconds=0.5)
    told = _told(dataclasses.replace(filled.settings, lake=nothing, kafka=down))
    assert told.endswith("; the lake is empty: run `spoor archive` first, then verify again")


def test_without_kafka_the_lag_is_unknown(filled: Any, settings: Settings) -> None:
    down = dataclasses.replace(filled.settings.kafka, port=settings.kafka.port, request_timeout_seconds=0.5)
    result = run_verify(dataclasses.replace(filled.settings, kafka=down))
    assert (result.differences, result.lag) == (0, None)
