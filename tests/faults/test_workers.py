"""Workers that are killed, frozen, joined and left: nothing differs at the end.

The first test is the short form that every change must pass; the others are run by `make faults`.
"""

import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import wait_until
from tests.fail_points import FAIL_POINTS
from tests.faults.conftest import Judged, NewWorld
from tests.faults.harness import LONG_SECONDS, Fleet
from tests.faults.traffic import Traffic
from tests.redis_servers import RedisServer
from tests.zygote import Zygote

RunRedis = Callable[..., RedisServer]


@pytest.mark.timeout(900)
def test_five_kills_a_zombie_and_workers_that_join_and_leave(make_world: NewWorld, zygote: Zygote, judged: Judged):
    releases = ("base-1", "base-2")
    online_store = {"type": "sqlite"}
    world = make_world(online_store=online_store, releases=releases, partitions=12, stall_seconds=300, zygote=zygote)
    traffic = Traffic(world)

    # Batch bootstraps the stream.
    traffic.produce(1500, bad=10)
    assert world.spoor("archive")["events"] == 1500
    world.spoor("backfill")

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

    # SIGSTOP until the partitions have moved, then SIGCONT, while a backfill races three workers.
    zombie, third = world.worker(), world.worker()
    wait_until(lambda: world.members() == 3, "three workers share twelve partitions")
    traffic.produce(200)
    zombie.send_signal(signal.SIGSTOP)
    traffic.produce(600, bad=3)
    world.spoor("archive")
    racing = world.start("backfill")
    traffic.produce(600)
    wait_until(world.caught_up, "the others have the zombie's partitions")
    zombie.send_signal(signal.SIGCONT)
    traffic.produce(300, bad=3)
    world.await_exit(racing, 0)
    world.stop(second)
    traffic.produce(300)
    wait_until(world.caught_up, "everything is committed")
    world.stop(zombie, third)
    judged(
        world,
        traffic,
        "Five kills, a zombie, a racing backfill, one to three workers (SQLite)",
        faults=6,
        found="the form that `make test` runs",
    )


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_fifty_kills_at_random_moments_and_at_fail_points(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    server = redis_server("--appendonly", "yes")
    online_store = {"type": "redis", "connection_string": server.connection_string}
    world = make_world(online_store=online_store, partitions=12, batch_events=500)
    traffic, pick = Traffic(world, users=2000), random.Random(1)
    # Every second worker dies at a fail point, in one of its first batches; the others at a random moment.
    places = (f"{name}:{pick.randint(1, 2)}" for name in itertools.cycle(FAIL_POINTS))
    fleet = Fleet(world, 2, fail_points=itertools.chain.from_iterable(zip(places, itertools.repeat(""))))
    next_kill = time.monotonic() + 10

    def killed_enough() -> bool:
        nonlocal next_kill
        if time.monotonic() >= next_kill:
            pick.choice(fleet.running).kill()
            next_kill = time.monotonic() + pick.uniform(2, 8)
        return flowed() and fleet.exits[-signal.SIGKILL] >= 50

    with traffic.flowing(200_000, bad=2000, pieces=200, seconds=240) as flowed:
        fleet.tended_until(killed_enough, "fifty workers are dead")
    fleet.finish()
    at_points = sum("fail point" in world.log(worker) for worker in world.workers)
    kills = fleet.exits[-signal.SIGKILL]
    judged(
        world,
        traffic,
        "SIGKILL of workers at random moments and at fail points",
        faults=kills,
        found=f"{at_points} of {kills} workers died at a fail point ({', '.join(FAIL_POINTS)}), the others at a random "
        "moment, starts and rebalances included",
    )


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_zombies(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    online_store = {"type": "redis", "connection_string": redis_server("--appendonly", "yes").connection_string}
    world = make_world(online_store=online_store)
    traffic = Traffic(world)
    workers = [world.worker(), world.worker()]
    wait_until(lambda: world.members() == 2, "both have joined")
    for turn in range(4):
        zombie = workers[turn % 2]
        with traffic.flowing(2000, bad=20, seconds=2):
            time.sleep(0.2 * turn)  # where in its batch it freezes is left to chance
            zombie.send_signal(signal.SIGSTOP)
        wait_until(world.caught_up, "the other worker has its partitions")
        zombie.send_signal(signal.SIGCONT)
        wait_until(lambda: world.members() == 2, "the zombie is back")
    traffic.produce(1000)
    wait_until(world.caught_up, "everything is committed")
    world.stop(*workers)
    skipped = sum(world.log(worker).count("records to their new owner") for worker in workers)
    judged(
        world,
        traffic,
        "SIGSTOP until the partitions have moved, then SIGCONT",
        faults=4,
        found=f"{skipped} times a worker left a batch of an earlier generation to its new owner; "
        f"{world.total('refused')} writes were refused and done again on what the store then held",
    )


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_workers_join_leave_and_die_while_events_flow(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    online_store = {"type": "redis", "connection_string": redis_server("--appendonly", "yes").connection_string}
    world = make_world(online_store=online_store, partitions=12)
    traffic = Traffic(world, users=500)
    running = [world.worker()]

    def joins(size: int) -> None:
        while len(running) < size:
            running.append(world.worker())
        wait_until(lambda: world.members() == size, f"{size} workers share the partitions")

    changes = 0
    with traffic.flowing(30_000, bad=300, pieces=100, seconds=60):
        for step in _steps():
            changes += 1
            if step == "join":
                joins(len(running) + 1)
            elif step == "leave":
                world.stop(running.pop(0))
                joins(len(running))
            else:
                running.pop(0).kill()
                joins(len(running))
    wait_until(world.caught_up, "everything is committed", seconds=LONG_SECONDS)
    world.stop(*running)
    judged(
        world,
        traffic,
        "One to three workers over twelve partitions: joins, leaves, kills",
        faults=changes,
        found=", ".join(_steps()),
    )


def _steps() -> Iterator[str]:
    yield from ("join", "join", "leave", "join", "kill", "join", "kill", "kill", "join", "join", "leave")
