"""Many kills: of workers, of jobs, of a release's retirement and of a forgetting, at any moment, while events flow.

`--kills N` says how many all scenarios of this file make together; processes are forked (tests/zygote.py).
"""

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.fail_points import FAIL_POINTS
from tests.faults.conftest import Judged, NewWorld
from tests.faults.harness import LONG_SECONDS, Fleet, World
from tests.faults.traffic import Traffic
from tests.redis_servers import RedisServer
from tests.zygote import Forked, Zygote

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]
RunRedis = Callable[..., RedisServer]
START_SECONDS = 60.0  # for a worker's first batch, on a busy machine
QUICK = {"session_seconds": 2.0, "batch_events": 50, "batch_seconds": 0.1}


@pytest.fixture
def redis_store(redis_server: RunRedis) -> dict[str, str]:
    return {"type": "redis", "connection_string": redis_server("--appendonly", "yes").connection_string}


def test_kills_of_workers_on_redis(
    make_world: NewWorld, redis_store: dict[str, str], zygote: Zygote, judged: Judged, kills: int
):
    world = make_world(online_store=redis_store, partitions=12, zygote=zygote, **QUICK)
    kill_workers(world, judged, kills * 6 // 10, size=2, scenario="SIGKILL of workers (Redis)", users=1000)


def test_kills_of_workers_on_sqlite_with_two_releases(make_world: NewWorld, zygote: Zygote, judged: Judged, kills: int):
    world = make_world(
        online_store={"type": "sqlite"}, releases=("base-1", "base-2"), partitions=4, zygote=zygote, **QUICK
    )
    kill_workers(world, judged, kills * 2 // 10, size=1, scenario="SIGKILL of workers (SQLite, two releases)", users=80)


def kill_workers(world: World, judged: Judged, kills: int, *, size: int, scenario: str, users: int) -> None:
    """Every third worker dies at a fail point in one of its first batches. Of the others, some or all are killed at
    once: most of them with a batch behind them and others under way, one in ten at any moment of its start."""
    traffic, pick = Traffic(world, users=users), random.Random(1)
    fleet = Fleet(world, size, fail_points=fail_points(pick))
    with traffic.endless(events_per_second=200):
        while (found := world.kills()).total < kills:
            world.tell(f"{scenario}: {found.total:,} of {kills:,} kills, {found.at_work:,} of them at work")
            fleet.tend()
            if pick.random() < 0.1:
                pause(fleet, pick.uniform(0, 1))
            else:
                wait_until(lambda: at_work(fleet) or ended(fleet), "a worker is at work", seconds=START_SECONDS)
                pause(fleet, pick.uniform(0, 0.4))
            for worker in pick.sample(fleet.running, pick.randint(1, size)):
                fleet.kill(worker)
            if ended(fleet) == size:
                world.forget_members()  # Kafka need not wait until their sessions are over
    fleet.finish()
    found = world.kills()
    assert found.total >= kills
    orphans_end(world)
    at_points = sum("fail point" in world.log(worker) for worker in world.workers)
    judged(
        world,
        traffic,
        scenario,
        faults=found.total,
        found=f"{found.at_work:,} of {found.total:,} workers had a batch under way when they died; {at_points:,} died "
        f"at a fail point ({', '.join(FAIL_POINTS)}), the others at any moment, starts and rebalances included",
    )


def test_kills_of_jobs_beside_a_worker(
    make_world: NewWorld, redis_store: dict[str, str], zygote: Zygote, judged: Judged, kills: int
):
    """archive, backfill and repair, one after the other, each killed somewhere on its way."""
    world = make_world(online_store=redis_store, zygote=zygote, buckets=8, **QUICK)
    traffic, pick = Traffic(world, users=300), random.Random(2)
    fleet = Fleet(world, 1, fail_points=fail_points(pick))
    jobs = (("archive",), ("backfill", "--resume"), ("verify", "--repair"), ("backfill",))
    traffic.produce(2000, bad=20)
    world.spoor("archive")
    lengths = {job: run_for(world, job) for job in jobs}
    with traffic.endless(events_per_second=100):
        for job in itertools.cycle(jobs):
            if (found := world.kills()).total >= kills * 15 // 100:
                break
            world.tell(f"jobs beside a worker: {found.total:,} kills")
            fleet.tend()
            if pick.random() < 0.2:
                fleet.kill(fleet.running[0])
                world.forget_members()
            kill_on_its_way(world, job, lengths, pick)
    fleet.finish()
    for job in jobs[:2]:
        run_for(world, job)
    found = world.kills()
    judged(
        world,
        traffic,
        "SIGKILL of archive, backfill and repair beside a worker (Redis)",
        faults=found.total,
        found=f"{', '.join(f'{count:,} of `{name}`' for name, count in found.commands.most_common())}; "
        f"{found.at_work:,} had a batch under way or held their lock",
    )


def test_kills_of_retirements_while_workers_run_and_die(
    make_world: NewWorld, redis_store: dict[str, str], zygote: Zygote, judged: Judged, kills: int
):
    """Five of six releases are retired, one after the other, each by a command that is killed again and again."""
    releases = tuple(f"base-{number}" for number in range(1, 7))
    world = make_world(online_store=redis_store, releases=releases, zygote=zygote, **QUICK)
    traffic, pick = Traffic(world, users=150), random.Random(3)
    fleet = Fleet(world, 2, fail_points=fail_points(pick))
    share = max(1, kills * 10 // 100 // len(releases[1:]))
    lengths: dict[tuple[str, ...], float] = {}
    traffic.produce(1000, bad=10)
    fleet.tended_until(world.caught_up, "every release has rows")
    with traffic.endless(events_per_second=50):
        for release in releases[1:]:
            job = ("release", "retire", release, "--yes")
            lengths[job] = max(lengths.values(), default=4.0)
            before = world.kills().commands["release retire"]
            tries = 0
            while world.kills().commands["release retire"] - before < share and tries < 3 * share:
                tries += 1
                world.tell(f"retirement of {release}: {world.kills().total:,} kills")
                fleet.tend()
                if pick.random() < 0.3:
                    fleet.kill(pick.choice(fleet.running))
                kill_on_its_way(world, job, lengths, pick, codes=(0,))
            run_for(world, job)
            pause(fleet, 1)  # the workers go on without it
    fleet.finish()
    found = world.kills()
    judged(
        world,
        traffic,
        "Releases retired while workers run, all of them killed (Redis)",
        faults=found.total,
        found=f"{len(releases) - 1} of {len(releases)} releases were retired; {found.commands['release retire']} times "
        f"the command was killed on its way and run again, {found.commands['stream']} times a worker",
        told={"releases": releases[:1], "retired": releases[1:]},
    )


def test_kills_of_forgettings_while_their_users_go_on(
    make_world: NewWorld, redis_store: dict[str, str], zygote: Zygote, judged: Judged, kills: int
):
    """By default a user is forgotten through now and as far ahead as clocks may run: what comes later counts."""
    world = make_world(online_store=redis_store, zygote=zygote, skew_seconds=2, **QUICK)
    traffic = Traffic(world, users=40, clock=lambda: time.time_ns() // 1_000_000)
    pick = random.Random(4)
    fleet = Fleet(world, 2, fail_points=fail_points(pick))
    through: dict[str, int] = {}
    begun: set[str] = set()
    lengths: dict[tuple[str, ...], float] = {}
    target = max(2, kills * 5 // 100)

    def forget(users: Sequence[str]) -> None:
        told = world.spoor(*command(users))
        through.update(dict.fromkeys(users, told["forgotten_through_ms"]))
        begun.difference_update(users)

    traffic.produce(500, bad=5)
    fleet.tended_until(world.caught_up, "everybody has a history")
    world.spoor("archive")
    started = time.monotonic()
    forget(["user-0", "user-7"])
    length = time.monotonic() - started
    with traffic.endless(events_per_second=100):
        while world.kills().commands["forget"] < target:
            world.tell(f"forgettings: {world.kills().total:,} kills")
            fleet.tend()
            if pick.random() < 0.5:
                fleet.kill(pick.choice(fleet.running))
            users = [f"user-{number}" for number in pick.sample(range(20), 3)]
            begun.update(users)
            lengths[command(users)] = length
            ended = kill_on_its_way(world, command(users), lengths, pick)
            if ended is not None:
                through.update(dict.fromkeys(users, ended["forgotten_through_ms"]))
            if pick.random() < 0.3:
                world.spoor("archive")
            if pick.random() < 0.3:
                forget(sorted(begun))
        forget(sorted(begun) or ["user-0"])
        back_ms = max(through.values()) + 1000
        fleet.tended_until(lambda: traffic.clock() > back_ms, "events after the last forgetting")
        pause(fleet, 2)
    fleet.finish()
    back = {sent.user for sent in traffic.sent if sent.timestamp > through.get(sent.user, 1 << 62)}
    assert back, "nobody came back"
    lost = sum(sent.timestamp <= through.get(sent.user, 0) for sent in traffic.sent)
    found = world.kills()
    judged(
        world,
        traffic,
        "Users forgotten through now (the default) while they go on, all killed (Redis)",
        faults=found.total,
        found=f"{len(through)} users were forgotten, most of them more than once, {len(back)} of them had later events "
        f"and came back with these; {lost:,} of {len(traffic.sent):,} events had to go; {found.commands['forget']} "
        f"times the command was killed on its way and run again, {found.commands['stream']} times a worker",
        told={"forgotten": through},
    )


def command(users: Sequence[str]) -> tuple[str, ...]:
    return ("forget", *(word for user in users for word in ("--user", user)), "--yes")


def fail_points(pick: random.Random) -> Iterator[str]:
    """Every third worker has one; without end."""
    for name in itertools.cycle(FAIL_POINTS):
        yield from ("", f"{name}:{pick.randint(1, 3)}", "")


def ended(fleet: Fleet) -> int:
    return sum(worker.poll() is not None for worker in fleet.running)


def at_work(fleet: Fleet) -> bool:
    """A worker has a batch behind it and one under way."""
    return any(isinstance(worker, Forked) and worker.handled and worker.under_way for worker in fleet.running)


def pause(fleet: Fleet, seconds: float) -> None:
    """Time for a worker to reach its fail point; shorter where all have ended."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end or ended(fleet) == fleet.size, "the pause is over", every=0.01)


def run_for(world: World, job: Sequence[str]) -> float:
    """Seconds."""
    started = time.monotonic()
    world.spoor(*job)
    return time.monotonic() - started


def kill_on_its_way(
    world: World,
    job: tuple[str, ...],
    lengths: dict[tuple[str, ...], float],
    pick: random.Random,
    *,
    codes: Sequence[int] = (0, 1),
) -> dict[str, Any] | None:
    """Starts it and kills it at any moment of the time that it takes. Returns its answer if it was quicker."""
    process = world.start(*job, "--json")
    started = time.monotonic()
    moment = started + pick.uniform(0.05, 1.1) * lengths[job]
    wait_until(lambda: process.poll() is not None or time.monotonic() > moment, "its moment", every=0.01)
    if process.poll() is None:
        world.kill(process)
    if process.returncode == -9:
        return None
    lengths[job] = time.monotonic() - started
    out, _ = process.communicate(LONG_SECONDS)
    assert process.returncode in codes, world.log(process)[-3000:]
    return json.loads(out)


def orphans_end(world: World) -> None:
    """No encoder outlives its worker."""
    zygote = world.zygote
    assert zygote is not None
    wait_until(lambda: zygote.orphans == 0, "the encoders of dead workers have ended", seconds=30)
