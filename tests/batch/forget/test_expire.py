"""`spoor forget --expire` against a genuine broker, a Feast repo on SQLite, a lake and an offline log. The clock is set
back for a forgetting that is to have happened long ago; Kafka loses its records as retention would delete them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from prometheus_client.parser import text_string_to_metric_families

import spoor.batch.forget.expire
import spoor.batch.forget.forget
from spoor.activity.events import Event, events_table
from spoor.activity.history import group_events, history_values
from spoor.activity.packing import read_forgotten_through
from spoor.base.errors import InfrastructureError, UsageError
from spoor.base.locks import exclusive
from spoor.batch.forget.expire import LEAST_GRACE_MS, ExpireResult, run_expire
from spoor.batch.forget.forget import AUDIT, run_forget
from spoor.batch.kafka.archive import open_lake, run_archive
from spoor.batch.kafka.retention import iso_time, oldest_record_ms
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.listing import list_users
from spoor.batch.users.verify import run_verify
from spoor.store.online import OnlineStore, open_online
from spoor.store.writer import GuardedWriter
from tests.store.conftest import open_unguarded
from tests.topics import topic_ends
from tests.unreadable import UNREADABLE, plant

GONE = ["user-3", "user-7"]
DAY_MS = 86_400_000
LONG_AGO_MS = time.time_ns() // 1_000_000 - 3 * DAY_MS


def expire(world: Any, **options: Any) -> ExpireResult:
    return run_expire(world.settings, **{"grace_ms": DAY_MS, "oldest_letter_ms": None} | options)


@pytest.fixture
def forget_long_ago(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def forget(world: Any, users: list[str], **options: Any) -> Any:
        with monkeypatch.context() as patch:
            clock = SimpleNamespace(time_ns=lambda: LONG_AGO_MS * 1_000_000, monotonic=time.monotonic)
            patch.setattr(spoor.batch.forget.forget, "time", clock)
            return run_forget(world.settings, users, **options)

    return forget


@pytest.fixture
def emptied(filled: Any, admin: KafkaAdminClient) -> Any:
    """`filled`, with what was published landed in the offline log; the activity topic has no record any more."""
    run_archive(filled.settings)
    delete_records(filled, admin)
    return filled


def send(world: Any, topic: str, time_ms: int) -> None:
    """A record without value, of this time, to partition 1."""
    with KafkaProducer(**world.settings.kafka.client_options()) as producer:
        producer.send(topic, key=b"user-9", value=None, partition=1, timestamp_ms=time_ms)


def delete_records(world: Any, admin: KafkaAdminClient) -> None:
    admin.delete_records(dict(topic_ends(world.settings.kafka, world.settings.kafka.topic)))


def listed(world: Any) -> int:
    return len(open_lake(world.settings.lake).forgotten)


def users_online(world: Any) -> set[str]:
    return set(open_online(world.settings.features).user_ids())


def test_a_marker_goes_when_kafka_has_nothing_left_of_the_past(emptied: Any, forget_long_ago: Any) -> None:
    forget_long_ago(emptied, [*GONE, "never-seen"])
    planned = expire(emptied, dry_run=True)
    assert (planned.removed, planned.listed, planned.waiting, listed(emptied)) == (3, 3, 0, 3)
    result = expire(emptied)
    assert (result.removed, result.listed, result.waiting, result.changed, result.returned) == (3, 3, 0, 0, 0)
    assert result.unfinished == 0
    assert users_online(emptied) == {f"user-{n}" for n in range(20)} - set(GONE) and listed(emptied) == 0
    assert run_verify(emptied.settings).differences == 0
    again = expire(emptied)
    assert (again.removed, again.listed, again.waiting) == (0, 0, 0)
    run_backfill(emptied.settings)
    assert not users_online(emptied).intersection(GONE)


def test_nobody_is_named_afterwards(emptied: Any, forget_long_ago: Any) -> None:
    forget_long_ago(emptied, GONE)
    list_users(users_online(emptied), emptied.settings.state_folder / "jobs" / "verify" / "online", buckets=1)  # killed
    expire(emptied)
    records = [json.loads(line) for line in (emptied.settings.state_folder / AUDIT).read_text().splitlines()]
    assert records[1]["job"].startswith("expire-") and records[1]["removed"] == 2
    folders = [emptied.settings.state_folder, emptied.settings.lake.folder]
    for path in (path for folder in folders for path in folder.rglob("*.*") if path.is_file()):
        if "registry" not in path.name and path.suffix in (".json", ".jsonl", ".db"):
            assert not any(user.encode() in path.read_bytes() for user in ("user-7", "user-3")), path


def test_a_marker_waits_for_its_grace(emptied: Any, forget_long_ago: Any) -> None:
    forget_long_ago(emptied, GONE[:1])
    run_forget(emptied.settings, GONE[1:])
    result = expire(emptied, grace_ms=4 * DAY_MS)
    assert (result.removed, result.waiting, result.listed, listed(emptied)) == (0, 2, 0, 2)
    result = expire(emptied)
    assert (result.removed, result.waiting, result.listed) == (1, 1, 1)
    assert users_online(emptied).intersection(GONE) == {GONE[1]}


def test_a_marker_waits_for_the_oldest_record_of_the_activity_topic(
    emptied: Any, forget_long_ago: Any, admin: KafkaAdminClient
) -> None:
    """One partition has nothing left, the other a record from within the grace after the forgetting; its time is set by
    the producer here, since the broker's cannot be set back."""
    assert oldest_record_ms(emptied.settings.kafka) is None
    forget_long_ago(emptied, GONE)
    kafka = dataclasses.replace(emptied.settings.kafka, topic=f"{emptied.settings.kafka.topic}-old")
    admin.create_topics([NewTopic(kafka.topic, num_partitions=2, replication_factor=1)], timeout_ms=30_000)
    old = dataclasses.replace(emptied, settings=dataclasses.replace(emptied.settings, kafka=kafka))
    for time_ms in (LONG_AGO_MS + DAY_MS, LONG_AGO_MS + DAY_MS + 1):
        send(emptied, kafka.topic, time_ms)
    assert oldest_record_ms(kafka) == LONG_AGO_MS + DAY_MS
    result = expire(old)
    assert (result.removed, result.listed, result.waiting) == (0, 0, 2)
    assert result.holds[0].what == kafka.topic and result.holds[0].since < iso_time(LONG_AGO_MS + 2 * DAY_MS)
    admin.delete_records({TopicPartition(kafka.topic, 1): 1})
    assert expire(old).removed == 2


def test_a_marker_waits_for_open_dead_letters(emptied: Any, forget_long_ago: Any) -> None:
    forget_long_ago(emptied, GONE)
    for letter_ms in (0, LONG_AGO_MS, LONG_AGO_MS + DAY_MS):
        result = expire(emptied, oldest_letter_ms=letter_ms)
        assert (result.removed, result.listed, result.waiting) == (0, 0, 2)
    letters = emptied.settings.kafka.dead_letter_topic
    assert [each.since for each in result.holds if each.what == letters] == [iso_time(LONG_AGO_MS + DAY_MS)]
    assert expire(emptied, oldest_letter_ms=LONG_AGO_MS + DAY_MS + 1).removed == 2


def test_a_marker_waits_for_published_rows_until_they_are_archived(emptied: Any, forget_long_ago: Any) -> None:
    forget_long_ago(emptied, GONE)
    send(emptied, emptied.settings.kafka.embedding_topic("base-1"), LONG_AGO_MS)
    result = expire(emptied)
    assert (result.removed, result.waiting) == (0, 2)
    assert [each.since for each in result.holds] == [iso_time(LONG_AGO_MS)]
    run_archive(emptied.settings)
    result = expire(emptied)
    assert (result.removed, result.holds) == (2, ())


def test_a_user_who_has_returned_keeps_the_row(emptied: Any, forget_long_ago: Any) -> None:
    through_ms = 950_000_000_000
    forget_long_ago(emptied, GONE, through_ms=through_ms)
    emptied.produce([Event("user-3", "item-1", "view", "web", through_ms + 1)], 0)
    run_archive(emptied.settings)
    run_backfill(emptied.settings)
    run_archive(emptied.settings)
    online = open_online(emptied.settings.features)
    before, rows = online.read(["user-3"], ["base-1"]), online.read_embeddings("base-1", ["user-3"])
    result = expire(emptied)
    assert (result.removed, result.returned, result.waiting, result.listed) == (1, 1, 0, 2)
    assert online.read(["user-3"], ["base-1"]) == before and rows[0] is not None
    assert read_forgotten_through([before[0].history or b""]).tolist() == [through_ms]
    assert run_verify(emptied.settings).differences == 0


def test_a_user_who_returns_while_markers_are_removed_stays(
    emptied: Any, forget_long_ago: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer comes between the read of the marker and its removal."""
    forget_long_ago(emptied, GONE, through_ms=950_000_000_000)
    remove = OnlineStore.remove

    def late(online: OnlineStore, revisions: dict[str, int]) -> Any:
        assert {*revisions} == {*GONE}
        event = Event("user-3", "item-1", "view", "web", 950_000_000_001)
        users, events = group_events(["user-3"], history_values(events_table([event])), max_events=8)
        writer = GuardedWriter(open_online(emptied.settings.features), [], history=emptied.settings.history)
        writer.update(users, events, as_of_ms=np.array([event.timestamp]))
        return remove(online, revisions)

    monkeypatch.setattr(OnlineStore, "remove", late)
    result = expire(emptied)
    assert (result.removed, result.changed) == (1, 1)
    online = open_online(emptied.settings.features)
    stored, gone = online.read(GONE, [])
    assert stored.has_events and gone.revision == 0


def test_a_run_that_was_killed_is_finished_by_running_it_again(
    emptied: Any, forget_long_ago: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_long_ago(emptied, GONE)
    with monkeypatch.context() as patch:
        patch.setattr(
            spoor.batch.forget.expire.ForgottenUsers,
            "drop_before",
            lambda *_, **__: (_ for _ in ()).throw(SystemExit),
        )
        with pytest.raises(SystemExit):
            expire(emptied)
    assert not users_online(emptied).intersection(GONE) and listed(emptied) == 2
    result = expire(emptied)
    assert (result.removed, result.listed, listed(emptied)) == (0, 2, 0)


@pytest.mark.parametrize("where", ["_forget_online", "_rewrite"])
def test_users_whose_forgetting_was_killed_stay_listed_until_it_is_run_again(
    emptied: Any, forget_long_ago: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(spoor.batch.forget.forget, where, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            forget_long_ago(emptied, GONE)
    result = expire(emptied)
    assert (result.removed, result.listed, result.unfinished, listed(emptied)) == (0, 0, 2, 2)
    forget_long_ago(emptied, GONE)
    result = expire(emptied)
    assert (result.removed, result.listed, result.unfinished) == (2, 2, 0)


def test_an_unreadable_history_of_a_forgotten_user_keeps_the_user_listed_and_stops_nobody(
    emptied: Any, forget_long_ago: Any
) -> None:
    forget_long_ago(emptied, ["user-1", "user-2"])
    online = open_online(emptied.settings.features)
    for user in ("user-1", "user-3"):
        plant(online, user, UNREADABLE["no history"], time_ms=900_000_000_000)
    result = expire(emptied)
    assert (result.removed, result.unfinished, listed(emptied)) == (1, 1, 1)
    assert {"user-1", "user-3"} <= users_online(emptied)


def test_a_marker_whose_entry_is_lost_counts_from_its_own_time(emptied: Any, forget_long_ago: Any) -> None:
    """Of a user with events the as-of time of these is later than the clock of this forgetting: both are of today."""
    forget_long_ago(emptied, ["never-seen", *GONE])
    (emptied.settings.lake.folder / "_forgotten.json").unlink()
    result = expire(emptied)
    assert (result.removed, result.waiting) == (1, 2) and "never-seen" not in users_online(emptied)


def test_what_was_removed_and_left_is_told_to_prometheus(
    emptied: Any, forget_long_ago: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_long_ago(emptied, GONE[:1])
    run_forget(emptied.settings, GONE[1:])
    with monkeypatch.context() as patch:
        patch.setattr(spoor.batch.forget.forget, "_rewrite", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            forget_long_ago(emptied, ["user-5"])
    expire(emptied, dry_run=True)
    file = emptied.settings.state_folder / "metrics" / "spoor_expire.prom"
    assert not file.exists()
    before = time.time()
    expire(emptied)
    families = text_string_to_metric_families(file.read_text())
    found = {sample.name: sample.value for family in families for sample in family.samples}
    assert found.pop("spoor_job_ended_timestamp_seconds") >= before
    assert found == {
        "spoor_expire_removed_markers": 1,
        "spoor_expire_waiting_markers": 2,  # one is not due, one is of the forgetting that was killed
        "spoor_expire_unfinished_users": 1,
    }


def test_bad_settings_and_missing_servers_are_told_and_nothing_is_removed(
    emptied: Any, forget_long_ago: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_long_ago(emptied, GONE)
    with pytest.raises(UsageError, match="--grace is 1 h") as raised:
        expire(emptied, grace_ms=3_600_000)
    assert raised.value.hint == f"it must be at least {LEAST_GRACE_MS // 3_600_000} h"
    kafka = emptied.settings.kafka
    for changed, error in (
        (dataclasses.replace(kafka, topic="not-there"), UsageError),
        (dataclasses.replace(kafka, bootstrap_servers="127.0.0.1:1", request_timeout_seconds=0.5), InfrastructureError),
    ):
        with pytest.raises(error):
            expire(dataclasses.replace(emptied, settings=dataclasses.replace(emptied.settings, kafka=changed)))
    with (
        exclusive(emptied.settings.state_folder / "jobs" / "backfill.lock", job="a test"),
        pytest.raises(InfrastructureError, match="already runs"),
    ):
        expire(emptied)
    monkeypatch.setattr(spoor.batch.forget.expire, "open_online", open_unguarded)
    with pytest.raises(UsageError, match="cannot list its users") as raised:
        expire(emptied)
    assert raised.value.hint
    assert listed(emptied) == 2
