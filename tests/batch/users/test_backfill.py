from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import spoor.batch.users.histories
from spoor.activity.hashing import user_hashes
from spoor.activity.history import Histories
from spoor.activity.packing import unpack
from spoor.base.errors import DataError, UsageError
from spoor.base.files import Manifest
from spoor.batch.jobs import LOCAL, Runner
from spoor.batch.kafka.archive import open_lake, run_archive
from spoor.batch.releases import choose_releases
from spoor.batch.users.backfill import BackfillResult, run_backfill
from spoor.batch.users.backfill_plan import BackfillOptions, items_key, plan_backfill, slice_key, spans_left
from spoor.batch.users.backfill_steps import EncodeAndWrite, ReadBuckets, Slice
from spoor.batch.users.histories import PLACES, Span
from spoor.config import Settings
from spoor.encoder.release.inference import FrozenEncoder, load_encoders
from spoor.encoder.release.info import read_info
from spoor.feature_repo.names import USER_HISTORY, user_embedding_view
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.reads import historical_features
from spoor.store.rows import EmbeddingRow

ROOT = Path(__file__).parents[3]
DAY_MS = 86_400_000
START_MS = 900_000_000_000  # of the events, and the release's trained-through time
Last = Callable[[Settings, str], dict[str, EmbeddingRow]]
Sql = Callable[..., dict[str, list[tuple]]]
Online = Callable[[Settings], dict[str, list[tuple]]]


def _offline(settings: Settings, view: str) -> list[dict[str, Any]]:
    """The rows, without the wall clock of their computation."""
    table = open_offline(settings.features).read(view)
    rows = table.drop_columns(["computed_at_ms"] if "computed_at_ms" in table.column_names else []).to_pylist()
    return sorted(rows, key=lambda row: (row["created_timestamp"], row["user_id"]))


def _same_rows(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    def split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], np.ndarray]:
        vectors = np.array([row.get("embedding", []) for row in rows])
        return [{k: v for k, v in row.items() if k != "embedding"} for row in rows], vectors

    (plain, vectors), (other_plain, other_vectors) = split(left), split(right)
    return plain == other_plain and np.allclose(vectors, other_vectors, atol=1e-5)


def test_online_histories_are_what_sql_says_about_the_produced_events(
    online_histories: Online, world: Any, sql_histories: Sql
) -> None:
    events = world.events(1, 400)
    world.produce(events[:250], 0)
    world.produce(events[200:], 1)  # fifty of them twice
    run_archive(world.settings)
    result = run_backfill(world.settings)
    expected = sql_histories(events, 8)
    assert online_histories(world.settings) == expected
    assert (result.rows, result.changed, result.published) == (len(expected),) * 3
    assert result.offline_rows == len(expected)
    assert result.users_per_second > 0


def test_embeddings_are_the_encoders_of_these_histories(world: Any, sql_histories: Sql) -> None:
    events = world.events(2, 300)
    world.produce(events, 0)
    run_archive(world.settings)
    run_backfill(world.settings)
    users = sorted(sql_histories(events, 8))
    online = open_online(world.settings.features)
    (encoder,) = load_encoders(world.settings.features.releases_folder, ["base-1"])
    vectors, used = encoder.encode(unpack([user.history or b"" for user in online.read(users, [])]))
    rows = online.read_embeddings("base-1", users)
    assert np.allclose(vectors, np.stack([row.embedding for row in rows if row]), atol=1e-5)
    assert [row.events_used for row in rows if row] == used.tolist()
    assert all(row.revision == 1 and row.created_ms > 1_700_000_000_000 for row in rows if row)  # append times


def test_histories_that_are_shorter_than_a_release_reads_are_warned_of(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run_backfill(world.settings, dry_run=True)
    length = read_info(world.settings.features.releases_folder / "base-1").max_events
    assert world.settings.history.max_events == 8 < length
    assert f"history.max_events is 8, and a release reads more events (`base-1` {length})" in caplog.text


def test_the_last_record_per_user_equals_the_store(world: Any, last_records: Last) -> None:
    world.produce(world.events(3, 200), 0)
    run_archive(world.settings)
    run_backfill(world.settings)
    world.produce(world.events(4, 40, users=5), 0)
    run_archive(world.settings)
    again = run_backfill(world.settings)
    assert again.published == again.changed == 5
    online = open_online(world.settings.features)
    users = sorted(online.user_ids())
    stored = dict(zip(users, online.read_embeddings("base-1", users), strict=True))
    records = last_records(world.settings, "base-1")
    assert {user: (row.revision, row.computed_at_ms) for user, row in records.items()} == {
        user: (row.revision, row.computed_at_ms) for user, row in stored.items() if row
    }
    assert all(np.array_equal(records[user].embedding, row.embedding) for user, row in stored.items() if row)


def test_a_second_backfill_changes_nothing(online_histories: Online, world: Any) -> None:
    world.produce(world.events(5, 100), 0)
    run_archive(world.settings)
    run_backfill(world.settings)
    before = online_histories(world.settings), _offline(world.settings, user_embedding_view("base-1"))
    again = run_backfill(world.settings)
    assert (again.changed, again.embeddings, again.published, again.skipped) == (0, 0, 0, 0)
    assert "20 users, 0 histories and 0 embeddings written online" in again.text()
    resumed = run_backfill(world.settings, resume=True)
    assert f"({resumed.items} of {resumed.items} work items by an earlier run)" in resumed.text()
    after = online_histories(world.settings), _offline(world.settings, user_embedding_view("base-1"))
    assert before[0] == after[0] and _same_rows(before[1], after[1])


def test_a_new_release_is_encoded_and_published_though_no_history_changes(
    online_histories: Online, world: Any, last_records: Last
) -> None:
    world.produce(world.events(6, 100), 0)
    run_archive(world.settings)
    run_backfill(world.settings)
    world.add_release("base-2", seed=7)
    result = run_backfill(world.settings, releases=["base-2"])
    assert (result.changed, result.published, result.embeddings) == (0, result.rows, result.rows)
    assert f"{result.rows} users, 0 histories and {result.rows} embeddings written online" in result.text()
    users = sorted(online_histories(world.settings))
    assert None not in open_online(world.settings.features).read_embeddings("base-2", users)
    assert sorted(last_records(world.settings, "base-2")) == users


def _replaying(settings: Settings) -> Settings:
    """The events of these tests are from the past: they were known when they happened, not when they were appended."""
    return dataclasses.replace(settings, stream=dataclasses.replace(settings.stream, as_of="event"))


def test_as_of_leaves_out_what_came_at_or_after_it(online_histories: Online, world: Any, sql_histories: Sql) -> None:
    events = world.events(7, 300)
    world.produce(events, 0)
    run_archive(world.settings)
    as_of = sorted(event.timestamp for event in events)[150]  # an event lies exactly there
    run_backfill(_replaying(world.settings), as_of_ms=as_of, publish=False)
    assert online_histories(world.settings) == sql_histories(events, 8, before=as_of)
    rows = _offline(world.settings, user_embedding_view("base-1"))
    assert {row["created_ms"] for row in rows} == {as_of}


def test_created_is_never_before_the_model_was_trained(world: Any) -> None:
    trained_through = START_MS + 3 * DAY_MS
    world.add_release("late-1", trained_through_ms=trained_through)
    world.produce(world.events(8, 100), 0)
    run_archive(world.settings)
    times = (START_MS + DAY_MS, START_MS + 4 * DAY_MS, DAY_MS)
    run_backfill(_replaying(world.settings), snapshots=times, into="offline")
    late = {row["created_ms"] for row in _offline(world.settings, user_embedding_view("late-1"))}
    assert late == {trained_through, START_MS + 4 * DAY_MS}
    base = {row["created_ms"] for row in _offline(world.settings, user_embedding_view("base-1"))}
    assert base == {START_MS + day * DAY_MS for day in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    ("as_of", "trained_day", "readable", "in_time", "said"),
    [
        ("event", 0, "all", "all", None),
        ("event", 9, "none", "none", "0 of {rows} rows readable before "),
        ("append", 0, "none", "none", "0 of {rows} rows readable before "),
        ("event", 3, "all", "some", "rows readable at their snapshot's time"),
    ],
)
def test_snapshots_that_no_honest_read_sees_are_announced_with_their_number(
    world: Any, as_of: str, trained_day: int, readable: str, in_time: str, said: str | None
) -> None:
    world.add_release("late-1", trained_through_ms=START_MS + trained_day * DAY_MS)
    world.produce(world.events(8, 100), 0)
    run_archive(world.settings)
    stream = dataclasses.replace(world.settings.stream, as_of=as_of)
    settings = dataclasses.replace(world.settings, stream=stream)
    times = (START_MS + DAY_MS, START_MS + 4 * DAY_MS, DAY_MS)
    result = run_backfill(settings, releases=["late-1"], snapshots=times, into="offline")
    created = [row["created_ms"] for row in _offline(settings, user_embedding_view("late-1"))]
    assert result.offline_rows == len(created) > 0
    assert result.readable_rows == sum(time <= START_MS + 4 * DAY_MS for time in created)
    assert result.readable_rows == {"all": len(created), "none": 0}[readable]
    assert {"all": result.rows_in_time == len(created), "none": not result.rows_in_time}.get(
        in_time, 0 < result.rows_in_time < len(created)
    )
    assert result.unreadable is None if said is None else said.format(rows=len(created)) in result.text()


def test_snapshots_are_what_sql_says_at_each_time(world: Any, sql_histories: Sql) -> None:
    events = world.events(9, 300, users=60)
    world.produce(events, 0)
    run_archive(world.settings)
    first, last, step = START_MS + DAY_MS, START_MS + 3 * DAY_MS, DAY_MS // 2
    result = run_backfill(_replaying(world.settings), snapshots=(first, last, step), into="offline")
    assert result.snapshots == 5
    rows = _offline(world.settings, USER_HISTORY)
    assert result.rows == len(rows)
    latest: dict[str, list[tuple]] = {}
    for time in range(first, last + 1, step):
        found = [row for row in rows if row["as_of_ms"] == time]
        histories = unpack([row["history"] for row in found])
        assert (histories.last_times() < time).all()
        changed = {row["user_id"]: histories[n].tolist() for n, row in enumerate(found)}
        assert all(latest.get(user) != history for user, history in changed.items())
        latest |= changed  # who has no row has not changed
        assert latest == sql_histories(events, 8, before=time)


def test_offline_rows_are_the_lakes_even_where_the_store_knows_more(
    online_histories: Online, world: Any, sql_histories: Sql
) -> None:
    events = world.events(10, 200)
    world.produce(events, 0)
    run_archive(world.settings)
    run_backfill(world.settings)
    as_of = START_MS + DAY_MS
    run_backfill(_replaying(world.settings), as_of_ms=as_of)
    rows = [row for row in _offline(world.settings, USER_HISTORY) if row["as_of_ms"] == as_of]
    histories = unpack([row["history"] for row in rows])
    assert {row["user_id"]: histories[n].tolist() for n, row in enumerate(rows)} == sql_histories(
        events, 8, before=as_of
    )
    assert online_histories(world.settings) == sql_histories(events, 8)


CRASH = """
import os, pickle, signal, sys
from spoor.base import files
from spoor.batch.kafka import publish
from spoor.batch.users import histories
from spoor.batch.users.backfill import run_backfill

histories.GROUP_EVENTS = 30
settings, where, count = pickle.load(open(sys.argv[1], "rb")), sys.argv[2], int(sys.argv[3])
def dying(original):
    def call(*arguments):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)
    return call
if where == "before-a-file":
    files.os.replace = dying(files.os.replace)
else:
    publish.Publisher._send = dying(publish.Publisher._send)
run_backfill(settings)
"""


def _killed_backfill(settings: Settings, folder: Path, *, where: str, after: int) -> None:
    """A backfill in a process of its own that kills itself at the call after the first `after` ones."""
    (folder / "settings").write_bytes(pickle.dumps(settings))
    command = [sys.executable, "-c", CRASH, str(folder / "settings"), where, str(after)]
    killed = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one work item, as in the process that is killed."""
    monkeypatch.setattr(spoor.batch.users.histories, "GROUP_EVENTS", 30)


@pytest.mark.usefixtures("small_groups")
def test_a_killed_backfill_that_resumes_ends_like_one_run(
    online_histories: Online, world: Any, last_records: Last, tmp_path: Path, sql_histories: Sql
) -> None:
    events = world.events(11, 400, users=60)
    world.produce(events, 0)
    run_archive(world.settings)
    # Files come in this order: some for item vectors, then per bucket journal, log and manifest entries.
    _killed_backfill(world.settings, tmp_path, where="before-a-file", after=19)
    resumed = run_backfill(world.settings, resume=True)
    assert 0 < resumed.skipped < resumed.items
    assert resumed.rows == 60
    assert online_histories(world.settings) == sql_histories(events, 8)
    view = user_embedding_view("base-1")
    after_crash = _offline(world.settings, view)
    run_backfill(world.settings)
    assert _same_rows(after_crash, _offline(world.settings, view))
    assert sorted(last_records(world.settings, "base-1")) == sorted(sql_histories(events, 8))


@pytest.mark.usefixtures("small_groups")
def test_what_a_killed_backfill_wrote_but_did_not_publish_is_published(
    online_histories: Online, world: Any, last_records: Last, tmp_path: Path
) -> None:
    world.produce(world.events(12, 100), 0)
    run_archive(world.settings)
    _killed_backfill(world.settings, tmp_path, where="before-publication", after=1)
    resumed = run_backfill(world.settings, resume=True)
    assert resumed.changed < resumed.rows == 20  # the killed one had written some: nothing changes for them now
    assert sorted(last_records(world.settings, "base-1")) == sorted(online_histories(world.settings))
    assert not list((world.settings.state_folder / "jobs" / "unpublished").glob("*"))


@pytest.mark.usefixtures("small_groups")
def test_rows_of_an_earlier_job_with_the_same_times_are_replaced_however_it_was_cut(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.produce(world.events(18, 200), 0)
    run_archive(world.settings)
    as_of = START_MS + 4 * DAY_MS
    run_backfill(world.settings, as_of_ms=as_of, into="offline")
    before = _offline(world.settings, user_embedding_view("base-1"))
    monkeypatch.setattr(spoor.batch.users.histories, "GROUP_EVENTS", 1_000)
    run_backfill(world.settings, as_of_ms=as_of, into="offline")
    assert _same_rows(before, _offline(world.settings, user_embedding_view("base-1")))
    assert len({row["user_id"] for row in before}) == len(before) == 20


def _more_events(world: Any) -> None:
    world.produce([event._replace(user_id=FIRST) for event in world.events(20, 5)], 0)
    run_archive(world.settings)


def _other_events(world: Any) -> None:
    """`spoor archive --again` after a change of [events]: what was a bad record is an event now."""
    run_archive(world.settings, resume=False)


def _fewer_users(world: Any) -> None:
    """The first step of a forget, which nothing keeps from running where a cluster works on and its driver is dead."""
    gone = sorted((f"user-{n}" for n in range(20)), key=_place)[:2]
    open_lake(world.settings.lake).forgotten.add(gone, through_ms=START_MS + 5 * DAY_MS, at_ms=START_MS)


def _place(user: str) -> int:
    return int(user_hashes([user])[0])


FIRST = min((f"late-{n}" for n in range(1_000)), key=_place)  # before all others, where users have a place


@pytest.mark.parametrize("meanwhile", [_more_events, _other_events, _fewer_users])
def test_who_comes_or_goes_between_two_tries_of_a_job_moves_nobody_from_slice_to_slice(
    world: Any, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Any], None]
) -> None:
    """Else users of a slice that is done would be written twice, and others never."""
    events = world.events(19, 200)
    world.produce(events + [event._replace(user_id=FIRST, action="new") for event in events[:5]], 0)
    known = dataclasses.replace(world.settings.events, actions=("view", "buy"), unknown_names="dead-letter")
    assert run_archive(dataclasses.replace(world.settings, events=known)).bad == {"unknown-action": 5}
    monkeypatch.setitem(ReadBuckets.__init__.__kwdefaults__, "slice_users", 4)
    process = EncodeAndWrite.process
    slices: list[str] = []

    def lost_at_the_second_slice(self: EncodeAndWrite, element: Slice) -> Iterator[str]:
        slices.append(element.key)
        if len(slices) == 2:
            meanwhile(world)
            raise RuntimeError("the machine is gone")
        yield from process(self, element)

    monkeypatch.setattr(EncodeAndWrite, "process", lost_at_the_second_slice)
    result = run_backfill(world.settings, into="offline", runner=Runner(LOCAL.name, retries=1))
    users = [row["user_id"] for row in _offline(world.settings, user_embedding_view("base-1"))]
    assert (sorted(users), result.rows) == (sorted(f"user-{n}" for n in range(20)), 20)
    assert slices.count(slices[0]) == 1
    again = run_backfill(world.settings, into="offline", resume=True)
    users = [row["user_id"] for row in _offline(world.settings, user_embedding_view("base-1"))]
    # What the lake holds makes the job: of other events it is another one, and begins anew.
    assert (users.count(FIRST), again.skipped) == {_fewer_users: (0, 2)}.get(meanwhile, (1, 0))


def test_who_is_forgotten_while_a_slice_is_on_its_way_is_written_nowhere(world: Any) -> None:
    """As by workers of a cluster that go on when their driver is dead, and its locks are free."""
    world.produce(world.events(22, 200), 0)
    run_archive(world.settings)
    lake = open_lake(world.settings.lake)
    options = BackfillOptions(("base-1",), None, (), "both", publish=False)
    plan = plan_backfill(world.settings, lake, options, choose_releases(world.settings, None), resume=False)
    (element,) = ReadBuckets(world.settings.lake, 8, "append", plan).process(plan.groups[0])
    writing = EncodeAndWrite(world.settings, plan)
    writing.setup()
    lake.forgotten.add(["user-1"], through_ms=START_MS + 5 * DAY_MS, at_ms=START_MS + 5 * DAY_MS)
    assert list(writing.process(element)) == [element.key]
    others = sorted(f"user-{n}" for n in range(20) if n != 1)
    assert sorted(open_online(world.settings.features).user_ids()) == others
    for view in (USER_HISTORY, user_embedding_view("base-1")):
        assert sorted(row["user_id"] for row in _offline(world.settings, view)) == others


def test_a_row_that_was_also_published_lands_as_the_same_row_and_is_read_once(world: Any) -> None:
    """By the job and by the archive of the topic; point-in-time reads answer once."""
    world.produce(world.events(21, 100), 0)
    run_archive(world.settings)
    run_backfill(world.settings)
    assert run_archive(world.settings).embedding_rows == 20
    rows = open_offline(world.settings.features).read(user_embedding_view("base-1")).to_pylist()
    by_user = {row["user_id"]: row for row in rows}
    assert len(rows) == 40 and all(row == by_user[row["user_id"]] for row in rows)
    now = pd.Timestamp(datetime.now(UTC))
    asked = pd.DataFrame({"user_id": sorted(by_user), "item_id": ["item-1"] * 20, "event_timestamp": [now] * 20})
    found = historical_features(world.settings.features, asked, "base-1")
    assert sorted(found["user_id"]) == sorted(by_user)
    assert found["embedding"].notna().all()


def test_without_a_broker_rows_are_published_by_the_next_backfill(
    world: Any, last_records: Last, settings: Settings
) -> None:
    world.produce(world.events(13, 100), 0)
    run_archive(world.settings)
    down = dataclasses.replace(world.settings.kafka, port=settings.kafka.port, request_timeout_seconds=0.5)
    first = run_backfill(dataclasses.replace(world.settings, kafka=down))
    assert (first.changed, first.published) == (20, 0)
    run_backfill(world.settings)
    assert len(last_records(world.settings, "base-1")) == 20


def test_item_vectors_go_to_their_view_and_the_log(world: Any) -> None:
    world.produce(world.events(14, 20), 0)
    run_archive(world.settings)
    assert run_backfill(world.settings).item_vectors == 40
    rows = open_offline(world.settings.features).read("item_embedding_base_1").to_pylist()
    (encoder,) = load_encoders(world.settings.features.releases_folder, ["base-1"])
    vectors = encoder.item_vectors(encoder.item_hashes)
    assert np.allclose([row["item_embedding"] for row in rows], vectors, atol=1e-6)
    feast = open_online(world.settings.features).feast
    found = feast.get_online_features(
        features=["item_embedding_base_1:item_embedding"], entity_rows=[{"item_id": encoder.item_ids[0]}]
    ).to_dict()
    assert np.allclose(found["item_embedding"][0], vectors[0], atol=1e-6)


def test_a_dry_run_writes_nothing(online_histories: Online, world: Any) -> None:
    world.produce(world.events(15, 50), 0)
    run_archive(world.settings)
    result = run_backfill(world.settings, dry_run=True)
    assert result.dry_run and result.items == 1 + 1  # all buckets together, and the item vectors
    assert online_histories(world.settings) == {}
    assert not (world.settings.state_folder / "jobs" / result.job).exists()


def test_embeddings_that_fail_are_counted_and_computed_by_a_resumed_run(
    online_histories: Online, world: Any, monkeypatch: pytest.MonkeyPatch, sql_histories: Sql
) -> None:
    events = world.events(19, 100)
    world.produce(events, 0)
    run_archive(world.settings)

    def broken(*_: object) -> None:
        raise RuntimeError("the model fails")

    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "encode", broken)
        failed = run_backfill(world.settings)
    assert (failed.encode_failures, failed.offline_rows) == (20, 0)
    assert online_histories(world.settings) == sql_histories(events, 8)  # histories advance all the same
    resumed = run_backfill(world.settings, resume=True)
    assert (resumed.encode_failures, resumed.offline_rows, resumed.published) == (0, 20, 20)
    users = sorted(sql_histories(events, 8))
    assert None not in open_online(world.settings.features).read_embeddings("base-1", users)


def test_what_was_finished_for_another_store_is_not_taken_for_done(world: Any, tmp_path: Path) -> None:
    world.produce(world.events(20, 200), 0)
    run_archive(world.settings)
    run_backfill(world.settings, into="offline")
    features = dataclasses.replace(world.settings.features, offline_folder=tmp_path / "other")
    other = dataclasses.replace(world.settings, features=features)
    assert run_backfill(other, into="offline", resume=True).skipped == 0
    assert len(_offline(other, user_embedding_view("base-1"))) == 20
    assert run_backfill(other, into="offline", resume=True).skipped == 2


def test_an_unknown_release_is_named_with_the_known_ones(world: Any) -> None:
    with pytest.raises(UsageError, match=r"release `nope` is not in .*: found base-1"):
        run_backfill(world.settings, releases=["nope"])


def test_snapshots_and_online_do_not_go_together(world: Any) -> None:
    with pytest.raises(UsageError, match="offline log alone"):
        run_backfill(world.settings, snapshots=(1, 2, 1), into="both")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": (10, 5, 1), "into": "offline"}, "end lies before the start"),
        ({"snapshots": (5, 10, 0), "into": "offline"}, "0 ms apart"),
        ({"snapshots": (5, 10, 1), "into": "online"}, "snapshots go to the offline log"),
    ],
)
def test_options_that_contradict_each_other_are_told_with_a_hint(world: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run_backfill(world.settings, **options)
    assert caught.value.hint


def test_a_release_without_checksums_is_a_data_error(world: Any) -> None:
    world.produce(world.events(21, 20), 0)
    run_archive(world.settings)
    (world.settings.features.releases_folder / "base-1" / "checksums.json").unlink()
    with pytest.raises(DataError, match=r"checksums\.json` is missing"):
        run_backfill(world.settings, publish=False)


def test_a_damaged_release_stops_the_job_with_one_message(online_histories: Online, world: Any) -> None:
    world.produce(world.events(16, 20), 0)
    run_archive(world.settings)
    weights = world.settings.features.releases_folder / "base-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    os.utime(weights.parent / "checksums.json", ns=(1, 1))  # another release as far as this process's cache goes
    with pytest.raises(DataError, match=r"model\.safetensors does not match its checksum"):
        run_backfill(world.settings)
    assert online_histories(world.settings) == {}


@pytest.mark.parametrize(
    ("noted", "left"),
    [
        ([], [(0, 2 * PLACES)]),
        ([(0, 5)], [(5, 2 * PLACES)]),
        ([(7, 9), (0, 5)], [(5, 7), (9, 2 * PLACES)]),
        ([(0, PLACES + 3), (PLACES + 3, 2 * PLACES)], []),
        ([(0, 9), (5, 7), (8, 2 * PLACES)], []),  # two tries at once that saw other users
    ],
)
def test_what_is_left_of_a_group_are_the_places_that_no_slice_covers(noted: list[Span], left: list[Span]) -> None:
    options = BackfillOptions(("base-1",), None, (10, 20), "offline", publish=False)
    keys = {slice_key((3, 4), span) for span in noted} | {slice_key((30,), (0, 2 * PLACES)), items_key("b03-1")}
    assert spans_left((3, 4), options, keys) == left


def test_the_manifest_adds_up(world: Any) -> None:
    world.produce(world.events(17, 100), 0)
    run_archive(world.settings)
    result: BackfillResult = run_backfill(world.settings)
    records = Manifest(world.settings.state_folder / "jobs" / result.job / "manifest").records()
    assert sum(record.get("rows", 0) for record in records.values()) == result.rows == 20


def test_an_empty_lake_is_nothing_to_do(online_histories: Online, world: Any) -> None:
    run_archive(world.settings)
    result = run_backfill(world.settings)
    assert (result.rows, result.item_vectors) == (0, 40)
    assert "the lake holds no events: run `spoor archive` first" in result.text()
    assert Histories.empty(0).count == len(online_histories(world.settings))
