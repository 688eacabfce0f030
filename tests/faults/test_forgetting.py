"""What is forgotten while workers run, freeze and replay does not come back."""

import random
import signal
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activity.events import encode_event
from batch.archive import open_lake
from tests.conftest import wait_until
from tests.faults.harness import Traffic, World, assert_store_holds, assert_topics_equal_store


@pytest.mark.timeout(900)
def test_what_is_forgotten_while_workers_run_freeze_and_replay_does_not_come_back(make_world: Callable[..., World]):
    world = make_world(online_store={"type": "sqlite"}, releases=("base-1", "base-2"))
    traffic = Traffic(world)
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
    world.stop(worker, zombie)

    left = [event for event in traffic.events if event.user_id not in gone or event.timestamp > through_ms]
    assert {event.user_id for event in left} >= set(gone[:1])  # at least the most active one came back
    world.spoor("archive")
    assert world.spoor("verify")["differences"] == 0
    assert_store_holds(world, left)
    assert_topics_equal_store(world)
    asked = world.spoor("forget", "--expire", "--dry-run")  # Kafka holds the past: no marker may go
    assert (asked["removed"], asked["listed"], asked["waiting"] + asked["returned"]) == (0, 0, len(gone))
    lake = open_lake(world.settings.lake)
    in_files = pa.concat_tables([pq.read_table(path, partitioning=None) for path in lake.files()])
    for event in in_files.select(["user_id", "timestamp"]).to_pylist():
        assert event["user_id"] not in gone or event["timestamp"] > through_ms
