"""A store that lost its latest writes, and what the stream, the topics and `verify` make of it after a rewind."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

from spoor.batch.kafka.archive import run_archive
from spoor.batch.users.verify import run_verify
from spoor.streaming.orders.handover import rewind
from spoor.streaming.worker import run_worker
from tests.conftest import wait_until
from tests.streaming.conftest import World, some_events


def test_after_a_rewind_nothing_differs_though_the_store_lost_what_was_committed(world: World):
    events = some_events(240)
    world.produce(events[:120])
    run_worker(world.settings, count=120, timeout_seconds=120)
    then_ms = time.time_ns() // 1_000_000
    wait_until(lambda: time.time_ns() // 1_000_000 > then_ms, "the next millisecond")
    store = world.settings.state_folder / "online.db"
    with closing(sqlite3.connect(store)) as online, closing(sqlite3.connect(world.folder / "copy.db")) as copy:
        online.backup(copy)
    world.produce(events[120:])
    run_worker(world.settings, count=120, timeout_seconds=120)
    world.assert_holds(events)
    with closing(sqlite3.connect(store)) as online, closing(sqlite3.connect(world.folder / "copy.db")) as copy:
        copy.backup(online)

    run_archive(world.settings)
    lost = run_verify(world.settings)
    assert lost.differences > 0 and world.caught_up()
    moved = rewind(world.settings, to_ms=then_ms)
    assert sum(before - now for before, now in moved.values()) == 120
    run_worker(world.settings, count=120, timeout_seconds=120)
    assert run_verify(world.settings).differences == 0
    world.assert_holds(events)
