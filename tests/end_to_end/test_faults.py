"""From events in Kafka to rows in Feast, while workers are killed, frozen and raced: nothing differs at the end.

The judge is an independent SQL query over the events that were produced, beside Spoor's own `verify`.
"""

import json
import random
import signal
from collections import Counter
from datetime import UTC, datetime

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activity.events import Event, encode_event, events_table
from activity.hashing import hash_items, hash_names
from activity.packing import unpack
from batch.archive import open_lake
from store.online import open_online
from store.rows import StoredUser
from tests.conftest import wait_until
from tests.end_to_end.conftest import ACTIONS, ITEMS, RELEASES, SURFACES, World
from tests.topics import topic_records

START_MS = 1_750_000_000_000
USERS = 80
BAD_VALUES = (
    b"not json",
    b"",
    b"[]",
    b'{"user_id": 1}',
    b'{"user_id": "u", "item_id": "i"}',
    b"\xff\xfe",
    None,
    b"{" * 40_000,
)


class Traffic:
    """Produces and remembers random events (some repeated, late, or under a foreign key) and bad records."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.events: list[Event] = []
        self.bad: Counter[str] = Counter()

    def produce(self, events: int, *, bad: int = 0) -> None:
        kafka = self.world.settings.kafka
        with self.world.producer() as producer:
            for _ in range(events):
                repeat = self.events and self.random.random() < 0.1
                event = self.random.choice(self.events) if repeat else self._event()
                self.events.append(event)
                key = "someone else" if self.random.random() < 0.02 else event.user_id
                producer.send(kafka.topic, key=key.encode(), value=encode_event(event))
            sent = []
            for _ in range(bad):
                value = self.random.choice(BAD_VALUES)
                sent.append(producer.send(kafka.topic, key=b"bad", value=value))
            producer.flush()
            for future in sent:
                where = future.get(timeout=30)
                self.bad[f"{kafka.topic}/{where.partition}/{where.offset}"] += 1

    def _event(self) -> Event:
        pick = self.random
        now = START_MS + len(self.events) * 500
        return Event(
            user_id=f"user-{int(USERS * pick.random() ** 2)}",  # a few users have most of the events
            item_id=pick.choice(ITEMS),
            action=pick.choice(ACTIONS),
            surface=pick.choice(SURFACES),
            timestamp=now - pick.choice((0, 0, 0, 1, 60_000, 3_600_000)),  # ties, and late by up to an hour
        )


def newest_by_sql(events: list[Event], max_events: int) -> dict[str, list[tuple[int, int, int, int]]]:
    """Newest L distinct events per user by (timestamp, item, action, surface), in DuckDB."""
    produced = events_table(events)
    produced = (
        produced.append_column("item", pa.array(hash_items(produced["item_id"].to_pylist())))
        .append_column("action_hash", pa.array(hash_names(produced["action"].to_pylist())))
        .append_column("surface_hash", pa.array(hash_names(produced["surface"].to_pylist())))
    )
    with duckdb.connect() as connection:
        connection.register("produced", produced)
        rows = connection.execute(
            """
            SELECT user_id, timestamp, item, action_hash, surface_hash
            FROM (SELECT DISTINCT user_id, timestamp, item, action_hash, surface_hash FROM produced)
            QUALIFY row_number() OVER (
                PARTITION BY user_id ORDER BY timestamp DESC, item DESC, action_hash DESC, surface_hash DESC
            ) <= $limit
            ORDER BY ALL
            """,
            {"limit": max_events},
        ).fetchall()
    histories: dict[str, list[tuple[int, int, int, int]]] = {}
    for user, *event in rows:
        histories.setdefault(user, []).append(tuple(event))
    return histories


def assert_store_holds(world: World, events: list[Event]) -> None:
    expected = newest_by_sql(events, world.settings.history.max_events)
    online = open_online(world.settings.features)
    users = sorted(online.user_ids())
    assert {user for user, row in zip(users, online.read(users, []), strict=True) if has_events(row)} == set(expected)
    users = sorted(expected)
    stored = unpack([row.history or b"" for row in online.read(users, [])])
    for i, user in enumerate(users):
        found = [tuple(int(part) for part in event) for event in stored[i]]
        assert found == expected[user], user


def has_events(row: StoredUser) -> bool:
    """Whether there is more than a forgotten user's marker."""
    return row.history is not None and bool(unpack([row.history]).lengths[0])


def assert_topics_equal_store(world: World) -> None:
    """The last record per user in each embedding topic is what the store holds."""
    online = open_online(world.settings.features)
    for release in RELEASES:
        topic = world.settings.kafka.embedding_topic(release)
        last = {record.key.decode(): record.value for record in topic_records(world.settings.kafka, topic)}
        assert last, topic
        for (user, value), stored in zip(last.items(), online.read_embeddings(release, list(last)), strict=True):
            assert (value is None) == (stored is None), user
            if value is None or stored is None:
                continue
            row = json.loads(value)
            assert row["revision"] == stored.revision, user
            np.testing.assert_array_equal(np.float32(row["embedding"]), stored.embedding)


def assert_dead_letters_are(world: World, bad: Counter[str]) -> None:
    """Each bad record once by origin, with its bytes' place in the topic."""
    letters = {
        record.key.decode() for record in topic_records(world.settings.kafka, world.settings.kafka.dead_letter_topic)
    }
    assert letters == set(bad)


@pytest.fixture
def traffic(world: World) -> Traffic:
    return Traffic(world, seed=7)


@pytest.mark.timeout(900)
def test_kills_freezes_and_races_end_at_the_same_histories(world: World, traffic: Traffic):
    # Batch bootstraps the stream.
    traffic.produce(1500, bad=10)
    assert world.spoor("archive")["events"] == 1500
    world.spoor("backfill")
    assert_store_holds(world, traffic.events)

    # SIGKILL at each place of a batch.
    for fail_point in ("before-read", "after-encode", "after-write", "after-publish"):
        traffic.produce(300, bad=3)
        world.await_exit(world.worker(fail_point), -signal.SIGKILL)

    # SIGKILL while a second worker joins.
    doomed = world.worker("during-rebalance")
    wait_until(world.caught_up, "the first worker has caught up")
    second = world.worker()
    world.await_exit(doomed, -signal.SIGKILL)
    traffic.produce(300, bad=3)
    wait_until(world.caught_up, "the second worker has taken over")

    # SIGSTOP until the partitions have moved, then SIGCONT, while a backfill races both.
    zombie = world.worker()
    wait_until(lambda: world.members() == 2, "the zombie has joined")
    traffic.produce(200)
    zombie.send_signal(signal.SIGSTOP)
    traffic.produce(600, bad=3)
    world.spoor("archive")
    racing = world.start("--config", str(world.config), "backfill")
    traffic.produce(600)
    wait_until(world.caught_up, "the second worker has the zombie's partitions")
    zombie.send_signal(signal.SIGCONT)
    traffic.produce(300, bad=3)
    world.await_exit(racing, 0)
    wait_until(world.caught_up, "everything is committed")
    for worker in (zombie, second):
        worker.send_signal(signal.SIGTERM)
        world.await_exit(worker, 0)

    world.spoor("archive")
    verified = world.spoor("verify")
    assert (verified["users"], verified["differences"]) == (len({e.user_id for e in traffic.events}), 0)
    assert_store_holds(world, traffic.events)
    assert_topics_equal_store(world)
    assert_dead_letters_are(world, traffic.bad)


@pytest.mark.timeout(900)
def test_what_is_forgotten_while_workers_run_freeze_and_replay_does_not_come_back(world: World, traffic: Traffic):
    gone = ["user-0", "user-1", "user-2"]  # those with most of the events
    traffic.produce(1200)
    world.spoor("archive")
    world.spoor("backfill")
    worker, zombie = world.worker(), world.worker()
    wait_until(lambda: world.members() == 2, "both workers have joined")
    traffic.produce(600)
    wait_until(world.caught_up, "both have the users in their caches")

    # One worker is frozen with the past in its memory and new records before it; the other goes on.
    zombie.send_signal(signal.SIGSTOP)
    past = [event for event in traffic.events if event.user_id in gone]
    through_ms = max(event.timestamp for event in past)
    traffic.produce(300)
    through = datetime.fromtimestamp(through_ms / 1000, UTC).isoformat(timespec="milliseconds")
    users = [word for user in gone[1:] for word in ("--user", user)]
    (world.folder / "ids").write_text("user-0\n")
    told = world.spoor("forget", *users, "--users-from", str(world.folder / "ids"), "--through", through, "--yes")
    assert (told["users"], told["online"], len(told["topics"])) == (3, 3, 2)
    zombie.send_signal(signal.SIGCONT)

    # A replay of the past, and of everything else; a returning user's later events are among the traffic above.
    with world.producer() as producer:
        for event in random.Random(3).sample(traffic.events, len(traffic.events)):
            producer.send(world.settings.kafka.topic, key=event.user_id.encode(), value=encode_event(event))
    wait_until(world.caught_up, "everything is committed")
    for process in (worker, zombie):
        process.send_signal(signal.SIGTERM)
        world.await_exit(process, 0)

    left = [event for event in traffic.events if event.user_id not in gone or event.timestamp > through_ms]
    assert {event.user_id for event in left} >= set(gone[:1])  # at least the most active one came back
    world.spoor("archive")
    assert world.spoor("verify")["differences"] == 0
    assert_store_holds(world, left)
    assert_topics_equal_store(world)
    lake = open_lake(world.settings.lake)
    in_files = pa.concat_tables([pq.read_table(path, partitioning=None) for path in lake.files()])
    for event in in_files.select(["user_id", "timestamp"]).to_pylist():
        assert event["user_id"] not in gone or event["timestamp"] > through_ms
