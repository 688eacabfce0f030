"""`spoor forget` against a genuine broker, a Feast repo on SQLite, a lake and an offline log."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import spoor.batch.forget.forget
from spoor.activity.events import Event
from spoor.activity.packing import read_forgotten_through
from spoor.base.errors import InfrastructureError, UsageError
from spoor.base.locks import exclusive
from spoor.batch.forget.forget import AUDIT, check_ids, read_ids, run_forget
from spoor.batch.kafka.archive import open_lake, run_archive
from spoor.batch.kafka.retention import _kept, kept_until
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.export import run_export
from spoor.batch.users.histories import newest_histories
from spoor.batch.users.listing import Job
from spoor.batch.users.verify import run_verify
from spoor.batch.users.verify_steps import UNEXPECTED_USER
from spoor.store.feast_store import registered_view
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.rows import UserWrite
from tests.topics import topic_records

GONE = ["user-3", "user-7"]
LATER_MS = 4_000_000_000_000  # an event that lies after every marker of these tests


@pytest.fixture
def archived(filled: Any) -> Any:
    """`filled`, with what was published landed in the offline log."""
    run_archive(filled.settings)
    return filled


def last_values(world: Any, release: str = "base-1") -> dict[str, bytes | None]:
    records = topic_records(world.settings.kafka, world.settings.kafka.embedding_topic(release))
    return {record.key.decode(): record.value for record in records}


def lake_users(world: Any) -> set[str]:
    lake = open_lake(world.settings.lake)
    return {user for path in lake.files() for user in pq.read_table(path, partitioning=None)["user_id"].to_pylist()}


def offline_users(world: Any) -> set[str]:
    offline = open_offline(world.settings.features)
    return {
        user for view in ("user_history", "user_embedding_base_1") for user in offline.read(view)["user_id"].to_pylist()
    }


def assert_forgotten(world: Any) -> None:
    online = open_online(world.settings.features)
    assert online.read_embeddings("base-1", GONE) == [None, None]
    assert newest_histories(open_lake(world.settings.lake), range(8), max_events=8).user_ids == sorted(
        lake_users(world)
    )
    for users in (lake_users(world), offline_users(world)):
        assert len(users) == 18 and not users.intersection(GONE)
    assert {user for user, value in last_values(world).items() if value is None} == set(GONE)
    result = run_verify(world.settings)
    assert (result.differences, result.examples) == (0, [])


def test_a_forgotten_user_is_gone_everywhere_and_nothing_differs(archived: Any) -> None:
    before = time.time_ns() // 1_000_000
    planned = run_forget(archived.settings, GONE, dry_run=True)
    assert len(lake_users(archived)) == 20
    result = run_forget(archived.settings, [*GONE, "user-3", "never-seen"])
    assert (result.users, result.online) == (3, 2)
    assert planned.lake_rows == result.lake_rows > 2
    assert planned.offline_rows == result.offline_rows == 2 * 3  # history and embedding by backfill, published
    skew_ms = archived.settings.events.max_skew_seconds * 1000
    assert 0 <= result.forgotten_through_ms - skew_ms - before < 60_000
    assert result.topics == (archived.settings.kafka.embedding_topic("base-1"),)
    values = last_values(archived)
    assert values.pop("never-seen") is None and len(values) == 20
    online = open_online(archived.settings.features)
    assert online.read(["never-seen"], [])[0].revision >= before  # its marker: events of it may be on their way
    run_forget(archived.settings, GONE)  # twice is once
    archived_again = run_archive(archived.settings)
    assert archived_again.embedding_rows == 0  # only records without value are new
    assert len(offline_users(archived)) == 18
    assert run_verify(archived.settings).differences == 0


def test_neither_a_second_archive_nor_a_backfill_nor_a_replay_brings_the_past_back(archived: Any) -> None:
    lost = [event for event in archived.events(1, 200) if event.user_id in GONE]
    run_forget(archived.settings, GONE)
    archived.produce(lost, 1)  # a replay
    again = run_archive(archived.settings, resume=False)  # reads every range again
    assert again.forgotten == 2 * len(lost)
    run_backfill(archived.settings)
    assert_forgotten(archived)


@pytest.mark.parametrize("job", ["export", "verify", "verify-repair"])
def test_lists_of_users_that_killed_jobs_left_go_too(archived: Any, monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    """A job that is killed with SIGKILL runs nothing of its end."""
    state = archived.settings.state_folder

    def killed(*_: Any, **__: Any) -> None:
        shutil.copytree(state / "jobs" / job, state / "copy")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            "spoor.batch.users.export.run_items" if job == "export" else "spoor.batch.users.verify.run_items",
            killed,
        )
        if job == "export":
            run_export(archived.settings, state / "vectors")
        else:
            run_verify(archived.settings, repair=job == "verify-repair")
    (state / "copy").rename(state / "jobs" / job)
    named = [path for path in (state / "jobs").rglob("*.json") if b"user-3" in path.read_bytes()]
    assert named
    run_forget(archived.settings, GONE, dry_run=True)
    assert named[0].exists()
    run_forget(archived.settings, GONE)
    assert not (state / "jobs" / job).exists()


def test_new_events_of_a_returning_user_count(archived: Any) -> None:
    result = run_forget(archived.settings, GONE, through_ms=950_000_000_000)
    back = Event("user-3", "item-1", "view", "web", 950_000_000_001)
    archived.produce([back, back._replace(timestamp=950_000_000_000)], 0)
    assert run_archive(archived.settings).forgotten == 1
    run_backfill(archived.settings)
    assert run_verify(archived.settings).differences == 0
    (row,) = open_online(archived.settings.features).read_embeddings("base-1", ["user-3"])
    assert row is not None and (row.events_used, row.event_time_ms) == (1, 950_000_000_001)
    assert json.loads(last_values(archived)["user-3"] or b"")["events_used"] == 1
    assert result.forgotten_through_ms == 950_000_000_000


def test_a_part_of_the_past_may_be_forgotten(archived: Any) -> None:
    events = [event for event in archived.events(1, 200) if event.user_id == "user-3"]
    times = sorted(event.timestamp for event in events)
    result = run_forget(archived.settings, ["user-3"], through_ms=times[len(times) // 2])
    left = [event for event in events if event.timestamp > times[len(times) // 2]]
    assert 0 < len(left) < len(events) and result.lake_rows == len(events) - len(left)
    assert run_verify(archived.settings).differences == 0
    (row,) = open_online(archived.settings.features).read_embeddings("base-1", ["user-3"])
    assert row is not None and row.events_used == len({event for event in left if int(event.item_id[5:]) < 50})
    assert "user-3" not in offline_users(archived)  # rows that may be made of the past; a backfill makes new ones


@pytest.mark.parametrize("where", ["_forget_online", "_rewrite", "append_audit"])
def test_a_run_that_was_killed_is_finished_by_running_it_again(
    archived: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(spoor.batch.forget.forget, where, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_forget(archived.settings, GONE)
    assert newest_histories(open_lake(archived.settings.lake), range(8), max_events=8).user_ids == sorted(
        {f"user-{n}" for n in range(20)} - set(GONE)
    )  # no batch job sees them from the first moment on
    run_forget(archived.settings, GONE)
    assert_forgotten(archived)


def test_a_kill_between_write_and_record_is_made_good_by_the_next_job(
    archived: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            spoor.batch.forget.forget.Publisher, "publish_users", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run_forget(archived.settings, GONE)
    assert None not in last_values(archived).values()
    run_backfill(archived.settings)
    assert {user for user, value in last_values(archived).items() if value is None} == set(GONE)


def test_topics_of_releases_that_are_gone_get_their_records_too(archived: Any, admin: Any) -> None:
    old = archived.settings.kafka.embedding_topic("base-0")
    archived.add_release("base-0", seed=4)
    run_backfill(archived.settings)
    (archived.settings.features.releases_folder / "base-0" / "release.json").unlink()
    result = run_forget(archived.settings, GONE)
    assert result.topics == (old, archived.settings.kafka.embedding_topic("base-1"))
    assert {user for user, value in last_values(archived, "base-0").items() if value is None} == set(GONE)
    assert open_online(archived.settings.features).read_embeddings("base-0", GONE) == [None, None]


def test_a_store_that_was_restored_from_a_copy_forgets_again(archived: Any) -> None:
    """The copy holds the past, and no marker; `verify` finds both users, a repair forgets them."""
    online = open_online(archived.settings.features)
    stored = online.read(GONE, [])
    rows = online.read_embeddings("base-1", GONE)
    run_forget(archived.settings, GONE)
    for user, before, row in zip(GONE, stored, rows, strict=True):
        (now,) = online.read([user], [])
        assert row is not None and before.history is not None
        revision = now.revision + 1
        copied = dataclasses.replace(row, revision=revision)
        write = UserWrite(user, now.revision, revision, before.history, 1, row.event_time_ms, before.as_of_ms, [copied])
        assert online.write([write]).all()
    assert {k: v for k, v in run_verify(archived.settings).kinds.items() if v} == {UNEXPECTED_USER: 2}
    assert run_verify(archived.settings, repair=True).remaining == 0
    assert_forgotten(archived)


def test_rows_that_were_published_before_are_not_landed_afterwards(filled: Any) -> None:
    """The records lie on the topic still, before those without value; the offline log has not been given them yet."""
    run_forget(filled.settings, GONE)
    assert run_archive(filled.settings).embedding_rows == 18
    assert len(offline_users(filled)) == 18 and not offline_users(filled).intersection(GONE)


def test_a_store_that_lost_its_rows_gets_the_markers_of_returning_users_back_with_a_backfill(archived: Any) -> None:
    run_forget(archived.settings, GONE, through_ms=950_000_000_000)
    archived.produce([Event("user-3", "item-1", "view", "web", 950_000_000_001)], 0)
    run_archive(archived.settings)
    online = open_online(archived.settings.features)
    for view in ("user_history", "user_embedding_base_1"):
        online._guard.delete_rows(online._config, registered_view(online.feast, online.features, view))
    run_backfill(archived.settings)
    (stored,) = online.read(["user-3"], [])
    assert stored.history is not None
    assert read_forgotten_through([stored.history]).tolist() == [950_000_000_000]
    assert run_verify(archived.settings).differences == 0


def test_the_audit_says_what_was_done_and_no_file_of_a_job_names_anybody(archived: Any, tmp_path: Path) -> None:
    run_verify(archived.settings)
    run_export(archived.settings, tmp_path / "elsewhere")
    results = [run_forget(archived.settings, [user]) for user in GONE]
    text = (archived.settings.state_folder / AUDIT).read_text()
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["job"] for record in records] == [result.job for result in results]
    assert [record["users"] for record in records] == [1, 1]
    assert not any(user in text for user in GONE)
    left = [
        path
        for path in archived.settings.state_folder.rglob("*.json*")
        if '"user-3"' in path.read_text(errors="replace")
    ]
    assert left == []


def test_what_only_kafka_can_remove_is_told_with_its_latest_date(archived: Any) -> None:
    kafka, now_ms = archived.settings.kafka, 1_000_000_000_000
    kept = {each.topic: each for each in kept_until(kafka, now_ms=now_ms)}
    assert set(kept) == {kafka.topic, kafka.embedding_topic("base-1")}
    week_ms = 7 * 86_400_000  # retention.ms and segment.ms of a broker without settings
    assert kept[kafka.topic].until == _iso(now_ms + 2 * week_ms)
    assert kept[kafka.embedding_topic("base-1")].until is None
    hour_ms = 3_600_000
    for policy, retention_ms, until in (
        ("compact", hour_ms, None),
        ("compact,delete", -1, None),
        ("compact,delete", hour_ms, _iso(now_ms + hour_ms + week_ms)),
    ):
        config = {"cleanup.policy": policy, "retention.ms": str(retention_ms), "segment.ms": str(week_ms)}
        assert _kept("letters", config, now_ms, "until closed").until == until
    down = dataclasses.replace(kafka, port=1, bootstrap_servers="127.0.0.1:1", request_timeout_seconds=0.5)
    with pytest.raises(InfrastructureError, match="does not answer"):
        kept_until(down, now_ms=now_ms)


def test_nothing_is_touched_where_the_broker_is_away_or_another_job_runs(archived: Any) -> None:
    def untouched() -> None:
        assert len(lake_users(archived)) == len(offline_users(archived)) == 20
        assert len(open_lake(archived.settings.lake).forgotten) == 0
        assert not (archived.settings.state_folder / AUDIT).exists()

    down = dataclasses.replace(archived.settings.kafka, bootstrap_servers="127.0.0.1:1", request_timeout_seconds=0.5)
    with pytest.raises(InfrastructureError, match="Kafka"):
        run_forget(dataclasses.replace(archived.settings, kafka=down), GONE)
    untouched()
    lake, jobs = open_lake(archived.settings.lake), archived.settings.state_folder / "jobs"
    for lock in (lake.folder / "_archive.lock", jobs / "backfill.lock"):
        with exclusive(lock, job="a test"), pytest.raises(InfrastructureError, match="already runs"):
            run_forget(archived.settings, GONE)
        untouched()


def test_ids_that_no_event_can_have_and_times_to_come_are_refused(archived: Any) -> None:
    for users, message in (([], "no user"), ([""], "no user id"), (["a\nb"], "no user id"), (["x" * 129], "129 bytes")):
        with pytest.raises(UsageError, match=message) as caught:
            run_forget(archived.settings, users)
        assert caught.value.hint
    with pytest.raises(UsageError, match="in the future"):
        run_forget(archived.settings, GONE, through_ms=LATER_MS)
    assert len(open_lake(archived.settings.lake).forgotten) == 0


def test_a_file_of_ids_has_one_a_line_to_the_letter(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes("007\r\n\n användare \nuser 3".encode())
    assert read_ids(file) == ["007", " användare ", "user 3"]
    file.write_bytes("\ufeff007\r\nübel\r\n".encode())
    assert read_ids(file) == ["007", "übel"]
    for refused, why in (
        (b"\xff", "not UTF-8"),
        ("007\nübel".encode("utf-16"), "UTF-16"),
        ("007\n\ufeffübel".encode(), "line 2 begins with a byte order mark"),
    ):
        file.write_bytes(refused)
        with pytest.raises(UsageError, match=why):
            read_ids(file)


def test_ids_of_a_list_are_checked_by_length_and_type():
    check_ids(["007", "übel"], 128)
    check_ids(["7"], 128, id_type="int64")
    for ids, most, kind in (
        (["übel"], 4, "string"),
        (["007"], 128, "int64"),
        (["a\x7f"], 128, "string"),
        ([], 9, "string"),
    ):
        with pytest.raises(UsageError):
            check_ids(ids, most, id_type=kind)


def test_a_file_of_ids_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spoor.batch.forget.forget.IDS_BYTES", 3)
    (tmp_path / "ids.txt").write_text("a\nbc")
    with pytest.raises(UsageError, match="more than 3 bytes"):
        read_ids(tmp_path / "ids.txt")


def _iso(time_ms: int) -> str:
    return np.datetime64(time_ms, "ms").astype("datetime64[s]").item().isoformat() + "+00:00"


def test_forget_does_without_beam() -> None:
    code = "import sys, batch.forget; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
