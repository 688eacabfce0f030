"""What is forgotten while workers run, freeze and replay does not come back."""

import random
import signal
from datetime import UTC, datetime

import pytest

from tests.conftest import wait_until
from tests.faults.conftest import Judged, NewWorld
from tests.faults.traffic import Traffic
from tests.zygote import Zygote


@pytest.mark.timeout(900)
def test_what_is_forgotten_while_workers_run_freeze_and_replay_does_not_come_back(
    make_world: NewWorld, zygote: Zygote, judged: Judged
):
    releases = ("base-1", "base-2")
    world = make_world(online_store={"type": "sqlite"}, releases=releases, stall_seconds=300, zygote=zygote)
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
    traffic.send(random.Random(3).sample(traffic.events, len(traffic.events)))
    wait_until(world.caught_up, "everything is committed")
    world.stop(worker, zombie)

    back = {event.user_id for event in traffic.events if event.user_id in gone and event.timestamp > through_ms}
    assert back >= set(gone[:1])  # at least the most active one came back
    judged(
        world,
        traffic,
        "Three users forgotten (`--through`) while a worker is frozen, then everything replayed (SQLite)",
        faults=1,
        found=f"the form that `make test` runs; {len(back)} of the three had later events and came back with these",
        told={"forgotten": dict.fromkeys(gone, through_ms)},
    )
    asked = world.spoor("forget", "--expire", "--dry-run")  # Kafka holds the past: no marker may go
    assert (asked["removed"], asked["listed"], asked["waiting"] + asked["returned"]) == (0, 0, len(gone))
