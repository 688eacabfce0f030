"""Backfills that race a live stream on the same users, and that are killed."""

import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.conftest import wait_until
from tests.faults.conftest import Judged, NewWorld
from tests.faults.harness import LONG_SECONDS, Traffic
from tests.redis_servers import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
RunRedis = Callable[..., RedisServer]


def test_backfills_race_a_live_stream_on_the_same_users(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    address = redis_server("--appendonly", "yes").connection_string
    world = make_world(online_store={"type": "redis", "connection_string": address})
    traffic = Traffic(world)
    traffic.produce(5000, bad=50)
    workers = [world.worker(), world.worker()]
    wait_until(lambda: world.members() == 2, "both workers have joined")
    changed, backfills = 0, 0
    with traffic.flowing(30_000, bad=300, pieces=150) as flowed:
        while not flowed() or backfills < 3:
            world.spoor("archive")
            changed += world.spoor("backfill")["changed"]
            backfills += 1
    wait_until(world.caught_up, "everything is committed", seconds=LONG_SECONDS)
    world.stop(*workers)
    judged(
        world, traffic, "Backfills race a live stream on the same users", faults=backfills,
        found=f"{backfills} times archive and backfill, one after the other, beside two workers; the backfills changed "
        f"{changed:,} histories before the stream did",
    )  # fmt: skip


def test_a_backfill_that_is_killed_ten_times(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    address = redis_server("--appendonly", "yes").connection_string
    world = make_world(online_store={"type": "redis", "connection_string": address}, buckets=24)
    traffic, pick = Traffic(world, users=5000), random.Random(2)
    traffic.produce(60_000, bad=600)
    world.spoor("archive")
    kills = 0
    while kills < 10:
        job = world.start("backfill", "--resume")
        end = time.monotonic() + pick.uniform(4, 9)
        wait_until(lambda job=job, end=end: job.poll() is not None or time.monotonic() >= end, "a moment")
        if job.poll() is None:
            job.send_signal(signal.SIGKILL)
            kills += 1
        else:
            world.await_exit(job, 0)
    rest = world.spoor("backfill", "--resume")
    worker = world.worker()
    wait_until(world.caught_up, "the stream has seen everything too", seconds=LONG_SECONDS)
    world.stop(worker)
    judged(
        world, traffic, "A backfill killed ten times, then ended with `--resume`", faults=kills,
        found=f"the last run found {rest['skipped']:,} of {rest['items']:,} work items finished by the killed ones",
    )  # fmt: skip
