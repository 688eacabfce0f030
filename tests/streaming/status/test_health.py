"""Alive: positions move or stand at the end. Ready: alive, assigned, and the servers answered."""

import pytest

from spoor.streaming.status.health import Health


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(30.0, clock=clock)


def working(health: Health, positions: dict[int, int], ends: dict[int, int]) -> Health:
    """A worker with these partitions whose servers have answered."""
    health.assigned(positions)
    health.positions(positions, ends)
    for server in ("broker", "store"):
        health.answered(server)
    return health


def test_a_worker_that_starts_is_alive_and_not_ready(health: Health, clock: Clock):
    clock.now += 10_000
    assert health.not_alive() == []
    assert health.not_ready() == [
        "partitions are not assigned yet",
        "the broker has not been asked yet",
        "the store has not been asked yet",
    ]


def test_a_position_that_stands_while_records_wait_is_not_alive_after_the_limit(health: Health, clock: Clock):
    working(health, {0: 5, 1: 9}, {0: 7, 1: 9})
    for _ in range(3):
        clock.now += 9.9
        health.looked()
        health.positions({0: 5, 1: 9}, {0: 8, 1: 9})
    assert health.not_alive() == []
    clock.now += 0.4
    assert health.not_alive() == ["partition 0 has stood at offset 5 for 30 s, 3 records wait"]
    assert health.not_ready() == health.not_alive()
    health.positions({0: 6, 1: 9}, {0: 8, 1: 9})
    assert health.not_alive() == []


def test_a_position_at_the_end_may_stand_for_ever_and_waits_from_when_records_come(health: Health, clock: Clock):
    working(health, {0: 9}, {0: 9})
    clock.now += 10_000
    health.looked()
    health.positions({0: 9}, {0: 9})
    clock.now += 29
    health.looked()
    health.positions({0: 9}, {0: 10})
    assert health.not_alive() == []
    clock.now += 29
    health.looked()
    assert health.not_alive() == [] and health.stall() == ""
    clock.now += 1
    assert health.not_alive() == ["partition 0 has stood at offset 9 for 30 s, 1 records wait"]
    assert health.stall() == "events wait"


def test_a_broker_that_has_been_silent_for_the_limit_is_a_stall_and_one_that_answers_again_is_not(
    health: Health, clock: Clock
):
    working(health, {0: 9}, {0: 9})
    clock.now += 29
    health.looked()
    health.silent("broker", "does not answer")
    assert (health.not_alive(), health.stall()) == ([], "")
    clock.now += 1
    health.looked()
    assert health.not_alive() == ["the broker has not answered for 30 s"]
    assert health.stall() == "the broker does not answer"
    health.answered("broker")
    assert (health.not_alive(), health.stall()) == ([], "")


def test_what_ends_the_worker_is_what_the_probe_says(health: Health, clock: Clock):
    """At every moment of a quiet topic, a slow record, and the next one."""
    working(health, {0: 9}, {0: 9})
    seen: list[bool] = []
    for ends in [9] * 20 + [10] * 20:
        clock.now += 2
        health.looked()
        health.positions({0: 9}, {0: ends})
        seen.append(bool(health.stall()))
        assert seen[-1] == bool(health.not_alive())
    assert seen == [False] * 35 + [True] * 5  # 30 s after the record was first seen


def test_a_loop_that_does_not_look_is_not_alive(health: Health, clock: Clock):
    working(health, {}, {})
    assert health.not_ready() == []  # more workers than partitions: it stands by
    clock.now += 31
    assert health.not_alive() == ["the worker's loop has not run for 31 s"]


def test_during_a_rebalance_a_worker_is_alive_and_not_ready(health: Health):
    working(health, {0: 1}, {0: 1}).revoked()
    assert health.not_alive() == []
    assert health.not_ready() == ["partitions are not assigned yet"]
    health.assigned([0])
    assert health.not_ready() == []


def test_a_partition_that_comes_back_counts_from_then(health: Health, clock: Clock):
    working(health, {0: 1}, {0: 5})
    health.assigned([])
    clock.now += 31
    health.assigned([0])
    health.positions({0: 1}, {0: 5})
    assert health.not_alive() == []


@pytest.mark.parametrize("server", ["broker", "store"])
def test_a_silent_server_makes_a_worker_unready_and_leaves_it_alive(health: Health, server: str):
    working(health, {0: 1}, {0: 1}).silent(server, "does not answer")
    assert (health.not_alive(), health.not_ready()) == ([], [f"the {server} does not answer"])
    health.answered(server)
    assert health.not_ready() == []


def test_a_worker_that_stops_is_neither(health: Health):
    working(health, {0: 1}, {0: 1}).failed(RuntimeError("password=secret"))
    assert health.not_alive() == health.not_ready() == ["the worker stops: RuntimeError"]


def test_lag_is_never_below_zero(health: Health):
    working(health, {0: 5, 1: 9}, {0: 7, 1: 8})
    assert health.lag() == {0: 2, 1: 0}


def test_a_worker_that_was_told_to_pause_may_stand_and_then_has_its_time_again(health: Health, clock: Clock):
    working(health, {0: 5}, {0: 7})
    health.paused = True
    for _ in range(10):
        clock.now += 29
        health.looked()
        health.positions({0: 5}, {0: 9})
    assert health.not_alive() == health.not_ready() == []
    health.paused = False
    clock.now += 29
    health.looked()
    health.positions({0: 5}, {0: 9})
    assert health.not_alive() == []
    clock.now += 1
    assert health.not_alive() == ["partition 0 has stood at offset 5 for 30 s, 4 records wait"]
