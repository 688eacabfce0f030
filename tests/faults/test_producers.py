"""Producers that send twice, in any order, with wrong clocks, or what is no event."""

import time
from collections.abc import Callable

import pytest

from tests.conftest import wait_until
from tests.faults.conftest import Judged, NewWorld
from tests.faults.harness import World
from tests.faults.traffic import Traffic
from tests.redis_servers import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture
def world(make_world: NewWorld, redis_server: Callable[..., RedisServer]) -> World:
    """With two workers at work."""
    address = redis_server("--appendonly", "yes").connection_string
    world = make_world(online_store={"type": "redis", "connection_string": address})
    world.worker()
    world.worker()
    wait_until(lambda: world.members() == 2, "both workers have joined")
    return world


def finish(world: World) -> None:
    wait_until(world.caught_up, "everything is committed")
    world.stop(*world.workers)


def test_events_sent_up_to_three_times_in_any_order(world: World, judged: Judged):
    traffic = Traffic(world)
    events = [traffic.event() for _ in range(8000)]
    copies = [event for event in events for _ in range(traffic.random.randint(1, 3))]
    traffic.random.shuffle(copies)
    traffic.send(copies, bad=[b"not json"] * 80)
    finish(world)
    judged(
        world,
        traffic,
        "Duplicated and shuffled delivery",
        faults=len(copies) - len(events),
        found=f"8,000 events were sent one to three times each, {len(copies):,} records in all, in random order",
    )


def test_one_record_in_a_hundred_is_malformed(world: World, judged: Judged):
    traffic = Traffic(world)
    traffic.produce(10_000, bad=100)
    noise = traffic.random.randbytes(900_000)
    traffic.send_large(b"x" * 3_000_000, noise)  # whose letters fit compressed, and not at all
    traffic.produce(10_000, bad=100)
    finish(world)
    judged(
        world,
        traffic,
        "One record in a hundred is no event",
        faults=len(traffic.bad),
        found="no JSON, no object, no value, missing fields, wrong types, no UTF-8, too large; two whose dead letters "
        "do not fit into their topic as they are",
    )


def test_clocks_that_are_off(world: World, judged: Judged):
    """Whose events lie further ahead than `events.max_skew_seconds` are refused; all others count as they say."""
    traffic = Traffic(world)
    limit_ms = world.settings.events.max_skew_seconds * 1000
    now_ms = time.time_ns() // 1_000_000
    minute, day = 60_000, 86_400_000
    accepted, refused = [], []
    for _ in range(8000):
        event = traffic.event()
        off_ms = traffic.random.choice(
            (0, 0, -minute, -day, -1000 * day, limit_ms - minute, limit_ms + 10 * minute, day)
        )
        event = event._replace(timestamp=now_ms + off_ms + traffic.random.randint(-1000, 0))
        (refused if off_ms > limit_ms else accepted).append(event)
    traffic.send(accepted, bad=[event.json() for event in refused])
    finish(world)
    judged(
        world,
        traffic,
        "Producers' clocks off, by up to 1,000 days back and one day ahead",
        faults=len(refused),
        found=f"{len(refused):,} events from more than {limit_ms // 1000} s ahead are dead letters, all others are in "
        "the histories at the time that they name",
    )
