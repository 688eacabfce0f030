"""Backfills that race a live stream on the same users, and that are killed."""

import random
import re
import signal
import sys
import threading
from collections.abc import Callable

import pytest

from tests.conftest import wait_until
from tests.faults.conftest import Judged, NewWorld
from tests.faults.harness import LONG_SECONDS
from tests.faults.traffic import Traffic
from tests.redis_servers import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
RunRedis = Callable[..., RedisServer]
# Work items are as large as memory allows: a few million events would be needed for several of them.
SMALL_ITEMS = (
    "import spoor.cli; from spoor.batch.users import histories; histories.GROUP_EVENTS = 100; spoor.cli.main()"
)


def test_backfills_race_a_live_stream_on_the_same_users(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    address = redis_server("--appendonly", "yes").connection_string
    world = make_world(online_store={"type": "redis", "connection_string": address})
    traffic = Traffic(world, users=1000)
    traffic.produce(10_000, bad=100)
    world.spoor("archive")
    first = world.start("backfill")  # it and both workers come to the same events at the same time
    workers = [world.worker(), world.worker()]
    backfills = 1
    with traffic.flowing(20_000, bad=200, pieces=100, seconds=40) as flowed:
        world.await_exit(first, 0)
        while not flowed() or backfills < 3:
            world.spoor("archive")
            world.spoor("backfill")
            backfills += 1
    wait_until(world.caught_up, "everything is committed", seconds=LONG_SECONDS)
    world.stop(*workers)
    judged(
        world,
        traffic,
        "Backfills race a live stream on the same users",
        faults=backfills,
        found=f"{backfills} times archive and backfill, one after the other, beside two workers; "
        f"{world.total('refused')} of the workers' writes were refused and done again on what the store then held, "
        f"{world.total('republished')} rows published again because the other had moved on",
    )


def test_a_backfill_that_is_killed_ten_times(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    address = redis_server("--appendonly", "yes").connection_string
    world = make_world(online_store={"type": "redis", "connection_string": address}, buckets=100, batch_events=500)
    traffic, pick = Traffic(world, users=1000), random.Random(2)
    traffic.produce(20_000, bad=200)
    world.spoor("archive")
    program = (sys.executable, "-c", SMALL_ITEMS)
    for _ in range(10):
        job = world.start("backfill", "--resume", program=program)
        wait_until(lambda job=job: " done (" in world.log(job), "another work item is done")
        threading.Event().wait(pick.uniform(0, 0.05))  # somewhere in the next one
        job.send_signal(signal.SIGKILL)
        world.await_exit(job, -signal.SIGKILL)
    last = world.start("backfill", "--resume", program=program)
    world.await_exit(last, 0)
    (ended,) = re.findall(r"backfill-\w+: (\d+) work items, (\d+) finished before", world.log(last))
    worker = world.worker()
    wait_until(world.caught_up, "the stream has seen everything too", seconds=LONG_SECONDS)
    world.stop(worker)
    judged(
        world,
        traffic,
        "A backfill killed ten times, then ended with `--resume`",
        faults=10,
        found=f"each was killed after it had finished a work item and had begun the next; the last found {ended[1]} "
        f"finished and did the other {ended[0]}",
    )
