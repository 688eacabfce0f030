"""What Kafka itself may lose or refuse: retention takes records before they are read, its disk is full."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from spoor.broker.settings import KafkaSettings
from spoor.services import local as services
from tests.brokers import one_node, running_broker
from tests.conftest import free_port, settings_in, wait_until
from tests.faults.conftest import Judged, NewWorld
from tests.faults.harness import Fleet, World
from tests.faults.judge import Place
from tests.faults.test_servers import at, pause, small_disk
from tests.faults.traffic import Traffic
from tests.redis_servers import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
RunRedis = Callable[..., RedisServer]
RETENTION_SECONDS = 4
IMPATIENT = {  # a broker that looks for old segments all the time
    "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "CLIENTS",
    "log.retention.check.interval.ms": 500,
    "log.segment.delete.delay.ms": 100,
    "log.initial.task.delay.ms": 500,
}
DELETED = re.compile(r"retention deleted (?:\d+ )?unread events: \S+ partition (\d+) offsets (\d+) to (\d+)")


def test_retention_that_takes_what_workers_have_not_read(
    make_world: NewWorld, redis_server: RunRedis, judged: Judged, tmp_path: Path
):
    """Workers are paused by order, and frozen, for longer than records live. Each record is in the store, or in a range
    that a worker has counted as lost."""
    port = free_port()
    client = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}")
    with running_broker(tmp_path / "kafka", one_node(port, free_port()) | IMPATIENT, client):
        world = make_world(kafka=client, online_store=at(redis_server("--appendonly", "yes")))
        keep_for(world, RETENTION_SECONDS)
        traffic, fleet = Traffic(world), Fleet(world, 2)
        fleet.tended_until(lambda: world.members() == 2, "both workers have joined")
        longer = RETENTION_SECONDS + 6
        with traffic.endless(events_per_second=100):
            pause(fleet, 3)
            world.spoor("stream", "pause")  # partitions stay where they are
            pause(fleet, longer)
            world.spoor("stream", "resume")
            pause(fleet, 5)
            frozen = list(fleet.running)
            for worker in frozen:  # Kafka takes them for dead
                worker.send_signal(signal.SIGSTOP)
            wait_until(lambda: world.members() == 0, "Kafka has taken the frozen workers for dead")
            wait_until(lambda: unread_is_gone(world), "retention has taken what they have not read")
            for worker in frozen:
                worker.send_signal(signal.SIGCONT)
            pause(fleet, 5)
            for worker in frozen:  # nobody is there at all
                fleet.kill(worker)
            wait_until(lambda: unread_is_gone(world), "retention has taken what the dead have not read")
            fleet.tended_until(lambda: world.members() == 2, "others have taken their place")
        keep_for(world, 3600)
        traffic.produce(500, bad=5)  # what comes last is read by somebody, who then knows what is missing before it
        fleet.finish()
        lost = counted_as_lost(world)
        assert lost, "retention took nothing"
        judged(
            world,
            traffic,
            f"Retention of {RETENTION_SECONDS} s: workers paused, frozen and dead for longer",
            faults=3,
            found=f"{len(lost):,} of {traffic.records:,} records were counted as lost, in lines of the workers' logs; "
            "every other one is in its history, or a dead letter. The lake, which lost others, is not judged",
            told={"lost": lost, "lake_folder": None},
            verified=False,
        )


def keep_for(world: World, seconds: int) -> None:
    """Small segments, and a short life, for the topic of events."""
    values = {"retention.ms": seconds * 1000, "segment.ms": 1000, "segment.bytes": 1 << 20}
    admin = KafkaAdminClient(**world.settings.kafka.client_options())
    try:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, world.settings.kafka.topic, configs=values)])
    finally:
        admin.close()


def unread_is_gone(world: World) -> bool:
    """Whether every partition begins behind what the group has committed."""
    kafka = world.settings.kafka
    with KafkaConsumer(group_id=world.settings.stream.group, **kafka.consumer_options()) as consumer:
        partitions = [TopicPartition(kafka.topic, p) for p in consumer.partitions_for_topic(kafka.topic)]
        begins = consumer.beginning_offsets(partitions)
        return all(begins[tp] > (consumer.committed(tp) or 0) for tp in partitions)


def counted_as_lost(world: World) -> set[Place]:
    """The offsets that the workers have named."""
    named = [found for worker in world.workers for found in DELETED.findall(world.log(worker))]
    return {(int(partition), offset) for partition, first, last in named for offset in range(int(first), int(last) + 1)}


def test_a_full_disk_under_kafka(make_world: NewWorld, redis_server: RunRedis, judged: Judged, tmp_path: Path):
    """The broker ends; with room again it is started, and nothing that it has acknowledged is lost."""
    with small_disk(tmp_path / "broker", 512) as fill:
        broker = settings_in(tmp_path / "broker", kafka__port=free_port(), kafka__controller_port=free_port())
        running = services.up(broker)
        try:
            redis = at(redis_server("--appendonly", "yes"))
            world = make_world(kafka=broker.kafka, online_store=redis, stall_seconds=10)
            traffic, fleet = Traffic(world), Fleet(world, 2)
            fleet.tended_until(lambda: world.members() == 2, "both workers have joined")
            with traffic.endless(events_per_second=200):
                for _ in range(3):
                    pause(fleet, 3)
                    fill()
                    assert running.pid is not None
                    fleet.tended_until(lambda pid=running.pid: not lives(pid), "the broker has ended")
                    pause(fleet, 2)
                    (tmp_path / "broker" / "ballast").unlink()
                    running = services.up(broker)
            fleet.finish()
            judged(
                world,
                traffic,
                "A full disk under Kafka, three times",
                faults=3,
                found="the broker ended by itself each time; with room again it was started, producers and workers "
                f"went on ({fleet.exits[3]} times a worker gave up with exit code 3 and was started again), and "
                "nothing that had been acknowledged was missing",
            )
        finally:
            services.down(broker)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
