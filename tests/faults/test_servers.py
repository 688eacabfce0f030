"""Brokers, stores and disks that die, stand, slow down or fill up while events flow."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from spoor.services import local as services
from tests.conftest import free_port, settings_in, wait_until
from tests.faults.conftest import Judged, NewWorld
from tests.faults.harness import Fleet, World
from tests.faults.traffic import Traffic
from tests.redis_servers import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
RunRedis = Callable[..., RedisServer]


def at(server: RedisServer) -> dict[str, str]:
    return {"type": "redis", "connection_string": server.connection_string}


def pause(fleet: Fleet, seconds: float) -> None:
    """Time in which events flow and workers are tended."""
    end = time.monotonic() + seconds
    fleet.tended_until(lambda: time.monotonic() >= end, "the pause is over")


def retries(world: World) -> int:
    return sum(world.log(worker).count(" follows in ") for worker in world.workers)


def test_a_broker_that_is_killed_and_started_again(
    make_world: NewWorld, redis_server: RunRedis, judged: Judged, tmp_path: Path
):
    (tmp_path / "kafka").mkdir()
    broker = settings_in(tmp_path / "kafka", kafka__port=free_port(), kafka__controller_port=free_port())
    running = services.up(broker)
    try:
        world = make_world(kafka=broker.kafka, online_store=at(redis_server("--appendonly", "yes")), stall_seconds=10)
        traffic, fleet = Traffic(world), Fleet(world, 2)
        fleet.tended_until(lambda: world.members() == 2, "both workers have joined")
        with traffic.flowing(15_000, bad=150, pieces=150, seconds=45):
            for down_seconds in (0, 5, 20):
                pause(fleet, 3)
                assert running.pid is not None
                os.kill(running.pid, signal.SIGKILL)
                os.waitpid(running.pid, 0)  # until it has let go of its ports
                pause(fleet, down_seconds)
                running = services.up(broker)
        fleet.finish()
        judged(
            world,
            traffic,
            "The Kafka broker killed (`kill -9`) and started again",
            faults=3,
            found=f"away for as long as a restart takes, then 5 s and 20 s longer; "
            f"{fleet.exits[3]} times a worker gave up (exit code 3) and was started again",
        )
    finally:
        services.down(broker)


def test_a_redis_that_is_killed_with_every_write_synced(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    server = redis_server("--appendonly", "yes", "--appendfsync", "always")
    world = make_world(online_store=at(server))
    traffic, fleet = Traffic(world), Fleet(world, 2)
    fleet.tended_until(lambda: world.members() == 2, "both workers have joined")
    with traffic.flowing(10_000, bad=100, pieces=100, seconds=20):
        for down_seconds in (0, 1, 10):
            pause(fleet, 2)
            server.kill()
            pause(fleet, down_seconds)
            server.start()
    fleet.finish()
    judged(
        world,
        traffic,
        "Redis killed (`kill -9`), `appendfsync always`",
        faults=3,
        found=f"away for 0, 1 and 10 s; {retries(world)} steps were tried again, {fleet.exits[3]} workers gave up "
        "(exit code 3) and were started again; nothing had to be replayed",
    )


def test_a_redis_whose_power_is_cut_and_the_rewind_after_it(
    make_world: NewWorld, redis_server: RunRedis, judged: Judged
):
    server = redis_server("--appendonly", "yes", "--appendfsync", "everysec")
    log = server.folder / "appendonlydir" / "appendonly.aof.1.incr.aof"
    world = make_world(online_store=at(server))
    traffic, fleet = Traffic(world), Fleet(world, 2)
    fleet.tended_until(lambda: world.members() == 2, "both workers have joined")
    lost_bytes = 0
    with traffic.flowing(10_000, bad=100, pieces=100, seconds=10):
        for _ in range(3):
            pause(fleet, 2)
            synced = log.stat().st_size
            pause(fleet, 1)
            server.kill()
            lost_bytes += log.stat().st_size - synced
            os.truncate(log, synced)
            server.start()
    before = fleet.replay()
    judged(
        world,
        traffic,
        "Redis killed, the last second of its file lost (`appendfsync everysec`, power cut)",
        faults=3,
        found=f"{lost_bytes:,} bytes of acknowledged writes were cut off; before the rewind `spoor verify` found "
        f"{before:,} differences, after it none",
        told={"one_vector_per_revision": False},
    )


def test_a_redis_that_stands_for_30_seconds_holds_the_consumers_back_and_nothing_else(
    make_world: NewWorld, redis_server: RunRedis, judged: Judged
):
    server = redis_server("--appendonly", "yes")
    world = make_world(online_store=at(server))
    traffic = Traffic(world)
    workers = [world.worker(), world.worker()]
    wait_until(lambda: world.members() == 2, "both workers have joined")
    traffic.produce(1000)
    wait_until(world.caught_up, "both are at work")
    before = world.rebalances()
    server.client().client_pause(30_000)
    paused = time.monotonic()
    traffic.produce(5000, bad=50)
    wait_until(world.caught_up, "the workers have gone on")
    waited = time.monotonic() - paused
    assert waited > 25
    assert world.rebalances() == before
    world.stop(*workers)
    judged(
        world,
        traffic,
        "Redis stands for 30 s (CLIENT PAUSE)",
        faults=1,
        found=f"5,050 records waited in Kafka and were committed after {waited:.0f} s; no rebalance, no retry needed "
        f"({retries(world)}), no worker ended",
    )


SLOW_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fdatasync(int file) {
    usleep(200000);
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(file);
}
"""


def test_a_disk_that_takes_200_ms_for_every_sync(
    make_world: NewWorld, redis_server: RunRedis, judged: Judged, tmp_path: Path
):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (`cc`) for the library that slows the disk down: `apt-get install gcc`")
    library = tmp_path / "slow_sync.so"
    (tmp_path / "slow_sync.c").write_text(SLOW_SYNC)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "slow_sync.c", "-ldl"], check=True)
    server = redis_server("--appendonly", "yes", "--appendfsync", "always", environment={"LD_PRELOAD": str(library)})
    world = make_world(online_store=at(server))
    traffic = Traffic(world)
    workers = [world.worker(), world.worker()]
    wait_until(lambda: world.members() == 2, "both workers have joined")
    before = world.rebalances()
    traffic.produce(5000, bad=50)
    started = time.monotonic()
    wait_until(world.caught_up, "everything is committed", seconds=300)
    seconds = time.monotonic() - started
    assert world.rebalances() == before
    world.stop(*workers)
    judged(
        world,
        traffic,
        "A slow disk under Redis: every sync takes 200 ms, `appendfsync always`",
        faults=1,
        found=f"5,050 records took {seconds:.0f} s; no rebalance, {retries(world)} retries",
    )


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Callable[[], None]]:
    """A tmpfs on `folder`. Yields what fills it; whoever removes `ballast` from it makes room again."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here, which takes root: {done.stderr.strip()}")

    def fill() -> None:
        with open(folder / "ballast", "wb", buffering=0) as ballast:
            try:
                while ballast.write(b"x" * 65536):
                    pass
            except OSError:
                pass

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disks_that_are_full(make_world: NewWorld, judged: Judged, tmp_path: Path):
    with small_disk(tmp_path / "redis", 32) as fill_redis, small_disk(tmp_path / "state" / "lake", 8) as fill_lake:
        server = RedisServer(tmp_path / "redis", ("--appendonly", "yes")).start()
        try:
            world = make_world(online_store=at(server))
            traffic, fleet = Traffic(world), Fleet(world, 2)
            fleet.tended_until(lambda: world.members() == 2, "both workers have joined")
            for _ in range(2):
                with traffic.flowing(5_000, bad=50, pieces=50, seconds=10):
                    pause(fleet, 2)
                    gave_up = fleet.exits[3]
                    fill_redis()
                    fleet.tended_until(lambda gave_up=gave_up: fleet.exits[3] > gave_up, "a worker has given up")
                    (server.folder / "ballast").unlink()
            fleet.finish()
            fill_lake()
            refused = world.start("archive")
            world.await_exit(refused, 3)
            assert "hint: " in world.log(refused)
            (world.settings.lake.folder / "ballast").unlink()
            judged(
                world,
                traffic,
                "Full disks: under Redis' append-only file twice, under the lake once",
                faults=3,
                found=f"Redis refused writes, {fleet.exits[3]} workers gave up (exit code 3) and were started again "
                "until there was room; `spoor archive` ended with exit code 3 and a hint, and went on with room",
            )
        finally:
            server.stop()


def test_a_redis_cluster_of_three_masters_that_fails_over(make_world: NewWorld, redis_server: RunRedis, judged: Judged):
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "yes")
    nodes = [redis_server(*options) for _ in range(6)]
    client = shutil.which("redis-cli")
    if client is None:
        pytest.skip("redis-cli, which joins the cluster's nodes, is not installed")
    addresses = [node.connection_string for node in nodes]
    subprocess.run(
        [client, "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    wait_until(lambda: all(state_of(node) == "ok" for node in nodes), "the cluster is whole")
    world = make_world(
        online_store={"type": "redis", "redis_type": "redis_cluster", "connection_string": ",".join(addresses)}
    )
    traffic, fleet = Traffic(world), Fleet(world, 2)
    fleet.tended_until(lambda: world.members() == 2, "both workers have joined")
    with traffic.flowing(10_000, bad=100, pieces=100, seconds=15):
        for _ in range(2):
            pause(fleet, 2)
            master = next(node for node in nodes if role_of(node) == "master" and has_replica(node))
            masters = sum(role_of(node) == "master" for node in nodes)
            master.kill()
            others = [node for node in nodes if node is not master]
            fleet.tended_until(
                lambda others=others, masters=masters: sum(role_of(node) == "master" for node in others) == masters,
                "a replica has taken over",
            )
            master.start()
    before = fleet.replay()
    judged(
        world,
        traffic,
        "A Redis Cluster of three masters, a master killed and its replica promoted",
        faults=2,
        found=f"{retries(world)} steps were tried again, {fleet.exits[3]} workers gave up and were started again; "
        f"replication is asynchronous: before the rewind `spoor verify` found {before:,} differences, after it none",
        told={"one_vector_per_revision": False},
    )


def state_of(node: RedisServer) -> str:
    return node.client().execute_command("CLUSTER INFO")["cluster_state"]


def role_of(node: RedisServer) -> str:
    try:
        return node.client().info("replication")["role"]
    except redis.exceptions.RedisError:
        return "dead"


def has_replica(node: RedisServer) -> bool:
    return node.client().info("replication")["connected_slaves"] > 0
