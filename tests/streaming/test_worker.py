"""Genuine Kafka, Feast on SQLite and a real encoder: what came in is in the store and on the topics, whatever happens
to the workers. The full matrix of faults is in tests/faults."""

import dataclasses
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from spoor.activity.events import Event
from spoor.activity.packing import unpack_readable
from spoor.base.errors import InfrastructureError, UsageError
from spoor.broker.create_topics import ensure_topics
from spoor.broker.settings import KafkaSettings
from spoor.services import local as services
from spoor.store.repo import apply
from spoor.streaming.app import build_app
from spoor.streaming.orders.replay import list_dead_letters, replay_dead_letters
from spoor.streaming.worker import run_worker
from tests.conftest import free_port, settings_in, wait_until
from tests.streaming.conftest import (
    ITEMS,
    RELEASE,
    START_MS,
    Worker,
    World,
    expected_histories,
    metric,
    page,
    some_events,
)
from tests.topics import topic_ends
from tests.unreadable import UNREADABLE, plant

BAD = [b"not json", b"", None, b"[]", b'{"user_id": 1}', b"\xff", b"{" * 20_000]


def test_building_the_app_connects_to_nothing(settings):
    app = build_app(settings)
    assert app.conf.id == settings.stream.group
    assert not app.conf.web_enabled
    assert not app.started


def test_events_reach_store_and_topics_and_bad_records_the_dead_letters(world: World):
    events = some_events(250)
    origins = world.produce(events, raw=BAD)
    taken = len(events) + len(BAD)
    summary = run_worker(world.settings, count=taken, timeout_seconds=120)
    world.assert_holds(events)
    assert world.caught_up()
    letters = list_dead_letters(world.settings)
    assert sorted(letter.origin for letter in letters) == sorted(origins)
    assert sorted(letter.value or b"" for letter in letters) == sorted(value or b"" for value in BAD)
    assert (summary.events, summary.dead_letters) == (len(events), len(BAD))
    assert summary.users == len({event.user_id for event in events}) < summary.user_rows
    assert summary.freshness_p50_ms is not None
    assert 0 < summary.freshness_p50_ms <= (summary.freshness_p99_ms or 0)
    assert len(summary.freshness_edges_ms) == len(summary.freshness_counts) + 1
    assert sum(summary.freshness_counts) == len(events)


def test_what_is_delivered_again_changes_nothing_and_is_published_again(world: World):
    events = some_events(100)
    world.produce(events)
    run_worker(world.settings, count=len(events), timeout_seconds=120)
    before = world.published()
    again = dataclasses.replace(
        world.settings, stream=dataclasses.replace(world.settings.stream, group=world.settings.stream.group + "-2")
    )
    summary = run_worker(again, count=len(events), timeout_seconds=120)
    assert summary.events == len(events)
    world.assert_holds(events)
    after = world.published()
    assert {user: row.revision for user, row in after.items()} == {user: row.revision for user, row in before.items()}


def test_a_worker_killed_after_a_write_and_restarted_ends_at_the_same_histories(world: World):
    events = some_events(300)
    origins = world.produce(events[:150], raw=BAD)
    killed = world.start_worker(fail_point="after-write:2")
    assert killed.ended() == -signal.SIGKILL, killed.log
    world.produce(events[150:])
    assert not world.caught_up()
    worker = world.start_worker()
    wait_until(world.caught_up, "the second worker has committed everything")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.log
    world.assert_holds(events)
    assert sorted(letter.origin for letter in list_dead_letters(world.settings)) == sorted(origins)


def test_sigterm_finishes_the_batch_in_flight_and_commits_it(world: World):
    events = some_events(200)
    worker = world.start_worker()
    worker.await_log("partitions 0 1 2 3")
    world.produce(events)
    worker.await_log("batch records=")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.log
    assert "Traceback" not in worker.log
    done = sum(world.committed().values())
    assert worker.summary["events"] == done
    left = len(events) - done
    if left:
        run_worker(world.settings, count=left, timeout_seconds=120)
    world.assert_holds(events)


def test_a_user_whose_history_cannot_be_read_is_set_aside_and_the_partition_goes_on(
    world: World, caplog: pytest.LogCaptureFixture
):
    events = some_events(100)
    world.produce(events)
    run_worker(world.settings, count=len(events), timeout_seconds=120)
    plant(world.online(), "user-3", UNREADABLE["no history"], time_ms=START_MS)
    more = some_events(100, seed=1)
    world.produce(more)
    summary = run_worker(world.settings, count=len(more), timeout_seconds=120)
    assert world.caught_up()
    own = sum(event.user_id == "user-3" for event in more)
    assert own > 0 and summary.set_aside > 0 and summary.events == len(more) - own
    assert sum("'user-3' is set aside" in record.message for record in caplog.records) == 1
    online, expected = world.online(), expected_histories(events + more)
    stored = online.read(sorted(expected), [RELEASE])
    found = unpack_readable([row.history for row in stored])
    assert [user for user, bad in zip(sorted(expected), found.unreadable, strict=True) if bad] == ["user-3"]
    for place, user in enumerate(sorted(expected)):
        assert found.histories[place].tolist() == ([] if user == "user-3" else expected[user])


def test_two_workers_share_the_partitions_and_one_takes_over_when_the_other_leaves(world: World):
    events = some_events(600)
    first = world.start_worker(forked=False)
    first.await_log("partitions 0 1 2 3")
    world.produce(events[:200])
    second = world.start_worker()
    wait_until(lambda: "partitions" in second.log, "the second worker has partitions")
    world.produce(events[200:400])
    wait_until(world.caught_up, "both have caught up")
    first.process.send_signal(signal.SIGTERM)
    assert first.ended() == 0, first.log
    second.await_log("partitions 0 1 2 3")
    world.produce(events[400:])
    wait_until(world.caught_up, "the second has caught up")
    second.process.send_signal(signal.SIGTERM)
    assert second.ended() == 0, second.log
    assert second.summary["events"] >= 200
    world.assert_holds(events)


def test_a_store_that_fails_stops_the_worker_with_its_offsets_uncommitted(world: World):
    events = some_events(50)
    worker = world.start_worker(SPOOR_STREAM__RETRIES="2", SPOOR_STREAM__RETRY_SECONDS="0.01")
    worker.await_log("partitions 0 1 2 3")
    with closing(sqlite3.connect(world.settings.state_folder / "online.db")) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            database.execute(f'DROP TABLE "{table}"')
    world.produce(events)
    assert worker.ended() == 3, worker.log
    assert "error: step store failed 2 times, the worker stops" in worker.log
    assert "hint: " in worker.log
    assert "Traceback" not in worker.log
    assert sum(world.committed().values()) == 0
    apply(world.settings.features)
    run_worker(world.settings, count=len(events), timeout_seconds=120)
    world.assert_holds(events)


def test_a_store_that_hangs_stops_the_worker_too(world: World):
    worker = world.start_worker(SPOOR_STREAM__STALL_SECONDS="2")
    worker.await_log("partitions 0 1 2 3")
    with closing(sqlite3.connect(world.settings.state_folder / "online.db")) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        world.produce(some_events(50))
        assert worker.ended() == 3, worker.log
    assert "error: no progress for 2 s although events wait" in worker.log
    assert sum(world.committed().values()) == 0


def test_a_dead_letter_that_cannot_be_written_stops_the_worker(world: World):
    worker = world.start_worker(SPOOR_STREAM__RETRIES="2", SPOOR_STREAM__RETRY_SECONDS="0.01")
    worker.await_log("partitions 0 1 2 3")
    topic = ConfigResource(
        ConfigResourceType.TOPIC, world.settings.kafka.dead_letter_topic, {"max.message.bytes": "100"}
    )
    with KafkaAdminClient(**world.settings.kafka.client_options()) as admin:
        admin.alter_configs([topic])
    world.produce(raw=[b"x" * 2000])
    assert worker.ended() == 3, worker.log
    assert "error: step dead-letters failed 2 times" in worker.log
    assert sum(world.committed().values()) == 0
    with pytest.raises(UsageError, match="even one that only refers to its record"):
        run_worker(world.settings, count=1, timeout_seconds=60)


def test_a_replay_closes_its_letters_and_what_fails_again_is_a_new_one(world: World):
    events = some_events(20)
    (origin,) = world.produce(events, raw=[b"never good"])
    strict = dataclasses.replace(
        world.settings,
        events=dataclasses.replace(world.settings.events, actions=("like",), unknown_names="dead-letter"),
    )
    run_worker(strict, count=len(events) + 1, timeout_seconds=120)
    refused = [event for event in events if event.action != "like"]
    assert len(list_dead_letters(world.settings, reason="unknown-action")) == len(refused)
    assert len(list_dead_letters(world.settings, limit=2)) == 2
    assert list_dead_letters(world.settings, limit=0) == []

    planned = replay_dead_letters(world.settings, dry_run=True)
    assert planned.by_reason == {"not-json": 1, "unknown-action": len(refused)}
    assert len(list_dead_letters(world.settings)) == len(refused) + 1

    assert replay_dead_letters(world.settings, reason="unknown-action").replayed == len(refused)
    assert replay_dead_letters(world.settings, reason="unknown-action").replayed == 0
    assert replay_dead_letters(world.settings).replayed == 1
    run_worker(world.settings, count=len(refused) + 1, timeout_seconds=120)
    world.assert_holds(events)
    (again,) = list_dead_letters(world.settings)
    assert again.origin != origin
    assert (again.replay_of, again.value) == (origin, b"never good")


def test_events_that_retention_deleted_unread_are_counted_and_told(world: World, caplog: pytest.LogCaptureFixture):
    events = some_events(80, users=8)
    world.produce(events[:40])
    run_worker(world.settings, count=40, timeout_seconds=120)
    world.produce(events[40:])
    committed, ends = world.committed(), topic_ends(world.settings.kafka, world.settings.kafka.topic)
    partition = max(ends, key=lambda tp: ends[tp] - committed[tp])
    unread = ends[partition] - committed[partition]
    left = sum(ends[tp] - committed[tp] for tp in ends) - unread
    with KafkaAdminClient(**world.settings.kafka.client_options()) as admin:
        admin.delete_records({TopicPartition(partition.topic, partition.partition): ends[partition]})
    summary = run_worker(world.settings, count=left, timeout_seconds=120)
    assert summary.lost_events == unread
    assert f"partition {partition.partition} offsets {committed[partition]} to {ends[partition] - 1}" in caplog.text


def test_metrics_tell_what_the_worker_did_and_how_much_waits(world: World):
    port, events = free_port(), some_events(150, users=12)
    world.produce(events, raw=[b"not json"])
    worker = world.start_worker(SPOOR_STREAM__METRICS_PORT=str(port))
    worker.await_log("batch records=")
    wait_until(world.caught_up, "the worker has committed everything")
    wait_until(lambda: metric(port, "spoor_stream_lag_records") == 0, "no lag is shown")
    found = {
        name: metric(port, f"spoor_stream_{name}")
        for name in ("records_total", "decoded_events_total", "events_total", "dead_letters_total", "partitions")
    }
    assert found == {
        "records_total": 151, "decoded_events_total": 150, "events_total": 150, "dead_letters_total": 1, "partitions": 4
    }  # fmt: skip
    users = metric(port, "spoor_stream_users_total")
    assert metric(port, "spoor_stream_batch_users_sum") == users
    assert metric(port, "spoor_stream_cache_misses_total") == 12  # each user's first batch, then memory
    assert metric(port, "spoor_stream_cache_hits_total") == users - 12
    assert metric(port, "spoor_stream_embedding_rows_total") == users
    assert metric(port, "spoor_stream_stale_rows_total") == 0
    assert 12 <= metric(port, "spoor_stream_changed_users_total") <= users
    assert metric(port, "spoor_stream_freshness_seconds_count") == 150

    with closing(sqlite3.connect(world.settings.state_folder / "online.db")) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        world.produce(some_events(40, seed=1))
        wait_until(lambda: metric(port, "spoor_stream_lag_records") == 40, "what waits for the store is shown")
    wait_until(lambda: metric(port, "spoor_stream_lag_records") == 0, "no lag is shown again")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.log


def hot_user(count: int) -> list[Event]:
    return [Event("hot", item, "view", "home", START_MS + n) for n, item in enumerate(ITEMS[:count])]


def start_with_floor(world: World, port: int, seconds: float) -> Worker:
    """`stream.encode_seconds`, and each event a batch of its own."""
    return world.start_worker(
        SPOOR_STREAM__METRICS_PORT=str(port),
        SPOOR_STREAM__ENCODE_SECONDS=str(seconds),
        SPOOR_STREAM__BATCH_EVENTS="1",
    )


def stored_revisions(world: World) -> tuple[int, int | None]:
    """The hot user's history's and embedding's."""
    (stored,) = world.online().read(["hot"], [RELEASE])
    return stored.revision, stored.embedding_revisions[RELEASE]


def test_between_two_encodes_of_a_user_lies_the_floor_and_the_last_comes_without_another_event(world: World):
    events, port = hot_user(4), free_port()
    world.produce(events)
    worker = start_with_floor(world, port, 4.0)
    wait_until(lambda: metric(port, "spoor_stream_batch_records_count") == 4, "each event was a batch")
    assert metric(port, "spoor_stream_postponed_encodes_total") == 3
    assert metric(port, "spoor_stream_stale_rows_total") == 0  # nothing is wrong with it
    wait_until(lambda: stored_revisions(world) == (4, 4), "the embedding has caught up")
    wait_until(lambda: metric(port, "spoor_stream_waiting_users") == 0, "nobody waits")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.log
    world.assert_holds(events)


def test_a_killed_worker_leaves_an_embedding_to_the_next_event_and_one_that_stops_leaves_none(world: World):
    events, ports = hot_user(4), (free_port(), free_port())
    worker = start_with_floor(world, ports[0], 3600.0)
    world.produce(events[:2])
    wait_until(lambda: sum(world.committed().values()) == 2, "both are committed")
    worker.process.kill()
    worker.process.wait()
    assert stored_revisions(world) == (2, 1)
    worker = start_with_floor(world, ports[1], 3600.0)
    world.produce(events[2:])
    wait_until(lambda: metric(ports[1], "spoor_stream_waiting_users") == 1, "the last event has come too soon")
    assert stored_revisions(world) == (4, 3)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.log
    world.assert_holds(events)


def test_a_worker_is_ready_once_it_has_partitions_and_while_store_and_broker_answer(world: World):
    port = free_port()
    worker = world.start_worker(SPOOR_STREAM__METRICS_PORT=str(port))
    statuses: list[int] = []

    def ready() -> bool:
        statuses.append(page(port, "/readyz")[0])
        return statuses[-1] == 200

    wait_until(ready, "the worker is ready")
    assert set(statuses) <= {0, 503, 200} and 503 in statuses  # it told before that it was starting
    assert "partitions 0 1 2 3" in worker.log
    assert page(port, "/healthz") == (200, "ok\n")
    with closing(sqlite3.connect(world.settings.state_folder / "online.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            database.execute(f'ALTER TABLE "{table}" RENAME TO "{table}_gone"')
        wait_until(lambda: page(port, "/readyz") == (503, "the store does not answer\n"), "it is not ready any more")
        assert page(port, "/healthz") == (200, "ok\n")  # a restart would not bring the store back
        for table in tables:
            database.execute(f'ALTER TABLE "{table}_gone" RENAME TO "{table}"')
    wait_until(lambda: page(port, "/readyz")[0] == 200, "it is ready again")


def test_an_address_that_is_not_this_machine_s_is_named(world: World):
    stream = dataclasses.replace(world.settings.stream, metrics_host="192.0.2.1", metrics_port=free_port())
    with pytest.raises(UsageError, match=r"192\.0\.2\.1") as raised:
        run_worker(dataclasses.replace(world.settings, stream=stream), timeout_seconds=60)
    assert "stream.metrics_host" in raised.value.hint


def test_a_broker_that_is_down_is_one_clear_error(world: World):
    down = dataclasses.replace(world.settings, kafka=KafkaSettings(port=free_port(), request_timeout_seconds=1.0))
    with pytest.raises(InfrastructureError, match="no Kafka broker answers") as raised:
        run_worker(down, timeout_seconds=60)
    assert "spoor services up" in raised.value.hint


def test_a_broker_that_dies_ends_the_worker_with_one_clear_error(world: World, tmp_path: Path):
    folder = tmp_path / "broker"
    folder.mkdir()
    server = settings_in(folder, kafka__port=free_port(), kafka__controller_port=free_port())
    broker = services.up(server)
    try:
        own = dataclasses.replace(world.settings.kafka, bootstrap_servers=server.kafka.address)
        ensure_topics(own, releases=[RELEASE])
        worker = world.start_worker(
            SPOOR_KAFKA__BOOTSTRAP_SERVERS=server.kafka.address,
            SPOOR_KAFKA__REQUEST_TIMEOUT_SECONDS="2",
            SPOOR_STREAM__STALL_SECONDS="3",
        )
        worker.await_log("partitions 0 1 2 3")
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        assert worker.ended() == 3, worker.log
    finally:
        services.down(server)
    assert "error: no progress for 3 s although the broker does not answer" in worker.log
    assert worker.log.count("Unable connect") <= 1
    assert "Traceback" not in worker.log


def test_missing_topics_are_named(world: World):
    kafka = dataclasses.replace(world.settings.kafka, topic="activity-that-is-not-there")
    with pytest.raises(UsageError, match="activity-that-is-not-there"):
        run_worker(dataclasses.replace(world.settings, kafka=kafka), timeout_seconds=60)


def test_an_unknown_release_is_named_with_those_that_are_there(world: World):
    stream = dataclasses.replace(world.settings.stream, releases=("base-9",))
    with pytest.raises(UsageError, match=r"base-9.*found base-1"):
        run_worker(dataclasses.replace(world.settings, stream=stream), timeout_seconds=60)
