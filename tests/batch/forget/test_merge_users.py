"""`spoor merge-users` against a genuine broker, a Feast repo on SQLite, a lake and an offline log."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq
import pytest

import spoor.batch.forget.merge_users
from spoor.activity.events import Event
from spoor.activity.packing import unpack
from spoor.base.errors import UsageError
from spoor.batch.forget.forget import AUDIT
from spoor.batch.forget.merge_users import run_merge_users
from spoor.batch.kafka.archive import open_lake, run_archive
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.verify import run_verify
from spoor.store.online import open_online
from tests.topics import topic_records

OLD, NEW = "user-3", "user-7"


@pytest.fixture
def archived(filled: Any) -> Any:
    """`filled`, with what was published landed in the offline log."""
    run_archive(filled.settings)
    return filled


def history(world: Any, user: str) -> list[tuple]:
    (stored,) = open_online(world.settings.features).read([user], [])
    return [] if stored.history is None else unpack([stored.history])[0].tolist()


def as_new(events: list[Event], *more: Event) -> list[Event]:
    """What the new id has done: its own events, and the old id's."""
    return [*(event._replace(user_id=NEW) for event in events if event.user_id in (OLD, NEW)), *more]


def assert_merged(world: Any, expected: list[Event], sql_histories: Any) -> None:
    assert history(world, NEW) == sql_histories(expected, 8)[NEW]
    online = open_online(world.settings.features)
    assert history(world, OLD) == [] and online.read_embeddings("base-1", [OLD]) == [None]
    kafka = world.settings.kafka
    values = {record.key.decode(): record.value for record in topic_records(kafka, kafka.embedding_topic("base-1"))}
    (row,) = online.read_embeddings("base-1", [NEW])
    assert values[OLD] is None and row is not None
    assert json.loads(values[NEW] or b"")["revision"] == row.revision
    files = open_lake(world.settings.lake).files()
    in_lake = [user for path in files for user in pq.read_table(path, partitioning=None)["user_id"].to_pylist()]
    assert in_lake.count(NEW) == len(expected) and OLD not in in_lake
    result = run_verify(world.settings)
    assert (result.differences, result.examples) == (0, [])


def test_histories_merge_and_the_old_id_is_forgotten(archived: Any, sql_histories: Any) -> None:
    events = archived.events(1, 200)
    theirs = [event for event in events if event.user_id == OLD]
    planned = run_merge_users(archived.settings, OLD, NEW, dry_run=True)
    assert (planned.events, planned.changed) == (len(theirs), False) and history(archived, OLD)
    result = run_merge_users(archived.settings, OLD, NEW)
    assert (result.events, result.lake_rows, result.changed) == (len(theirs), len(theirs), True)
    assert result.forgotten_through_ms == max(event.timestamp for event in theirs)
    assert result.offline_rows == 3  # history and embedding by backfill, and as published
    assert_merged(archived, as_new(events), sql_histories)
    (line,) = (archived.settings.state_folder / AUDIT).read_text().splitlines()
    assert json.loads(line)["job"] == result.job and OLD not in line and NEW not in line


def test_no_replay_archive_or_backfill_undoes_it_and_later_events_of_the_old_id_are_its_own(
    archived: Any, sql_histories: Any
) -> None:
    events = archived.events(1, 200)
    through = run_merge_users(archived.settings, OLD, NEW).forgotten_through_ms
    archived.produce([event for event in events if event.user_id == OLD], 1)
    assert run_archive(archived.settings, resume=False).forgotten > 0  # the moved events' ranges are read again too
    run_backfill(archived.settings)
    assert_merged(archived, as_new(events), sql_histories)
    later = Event(OLD, "item-1", "view", "web", through + 1)
    archived.produce([later], 1)
    run_archive(archived.settings)
    run_backfill(archived.settings)
    assert history(archived, OLD) == sql_histories([later], 8)[OLD]
    assert run_verify(archived.settings).differences == 0
    assert run_merge_users(archived.settings, OLD, NEW).events == 1  # and the next merge moves it
    assert_merged(archived, as_new(events, later._replace(user_id=NEW)), sql_histories)


def test_an_id_that_never_was_gets_the_events_as_its_own(archived: Any, sql_histories: Any) -> None:
    theirs = [event._replace(user_id="login") for event in archived.events(1, 200) if event.user_id == OLD]
    run_merge_users(archived.settings, OLD, "login")
    assert history(archived, "login") == sql_histories(theirs, 8)["login"]
    assert run_verify(archived.settings).differences == 0


@pytest.mark.parametrize(
    "where", ["_move", "forget_everywhere", "append_audit", "spoor.batch.forget.forget._forget_online"]
)
def test_a_run_that_was_killed_is_finished_by_running_it_again(
    archived: Any, monkeypatch: pytest.MonkeyPatch, sql_histories: Any, where: str
) -> None:
    with monkeypatch.context() as patch:
        target = where if "." in where else f"{spoor.batch.forget.merge_users.__name__}.{where}"
        patch.setattr(target, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_merge_users(archived.settings, OLD, NEW)
    run_merge_users(archived.settings, OLD, NEW)
    assert_merged(archived, as_new(archived.events(1, 200)), sql_histories)


def test_events_that_are_not_archived_are_not_lost_but_asked_for(archived: Any) -> None:
    """The stream has written an event that the lake lacks: forgetting the old id would take it along."""
    newest = max(event.timestamp for event in archived.events(1, 200) if event.user_id == OLD)
    lake = open_lake(archived.settings.lake)
    for item, entry in lake.ranges().items():
        lake.manifest.add(item, entry | {"files": [], "rows": 0})
    later = Event(OLD, "item-1", "view", "web", newest + 1)
    archived.produce([later], 1)
    run_archive(archived.settings)
    with pytest.raises(UsageError, match="not in the lake yet") as caught:
        run_merge_users(archived.settings, OLD, NEW)
    assert "spoor archive" in caught.value.hint
    assert history(archived, OLD) and len(lake.forgotten) == 0


def test_ids_that_make_no_sense_are_refused(archived: Any) -> None:
    with pytest.raises(UsageError, match="the same id"):
        run_merge_users(archived.settings, OLD, OLD)
    with pytest.raises(UsageError, match="holds no event") as caught:
        run_merge_users(archived.settings, "nobody", NEW)
    assert "spoor archive" in caught.value.hint
    with pytest.raises(UsageError, match="no user id"):
        run_merge_users(archived.settings, "", NEW)
