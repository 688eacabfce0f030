"""From events in Kafka to rows in Feast, while workers are killed, frozen and raced: nothing differs at the end.

The judge is an independent SQL query over the events that were produced, beside Spoor's own `verify`.
"""

import json
import random
import signal
from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from activity.events import Event, encode_event, events_table
from activity.hashing import hash_items, hash_names
from activity.packing import unpack
from store.online import open_online
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
    assert set(online.user_ids()) == set(expected)
    users = sorted(expected)
    stored = unpack([row.history or b"" for row in online.read(users, [])])
    for i, user in enumerate(users):
        found = [tuple(int(part) for part in event) for event in stored[i]]
        assert found == expected[user], user


def assert_topics_equal_store(world: World) -> None:
    """The last record per user in each embedding topic is what the store holds."""
    online = open_online(world.settings.features)
    for release in RELEASES:
        topic = world.settings.kafka.embedding_topic(release)
        last = {record.key.decode(): json.loads(record.value) for record in topic_records(world.settings.kafka, topic)}
        assert last, topic
        for (user, row), stored in zip(last.items(), online.read_embeddings(release, list(last)), strict=True):
            assert stored is not None, user
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
