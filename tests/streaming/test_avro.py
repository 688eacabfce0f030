"""Events in Avro with a schema registry, through a worker and an archive of the same topic."""

from __future__ import annotations

import dataclasses

import pytest

from spoor.activity.events import Event
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.base.errors import InfrastructureError
from spoor.batch.kafka.archive import run_archive
from spoor.operations.simulate import run_simulate
from spoor.streaming.orders.replay import list_dead_letters
from spoor.streaming.worker import run_worker
from tests.schema_registry import running_registry
from tests.streaming.conftest import START_MS, World

BAD = [b"\0\0\0\0\x63x", b'{"user_id": 1}']  # of schema 99, which nobody registered; and no Avro
PLAN = SimulatorSettings(events=60, users=8, items=20, from_ms=START_MS, to_ms=START_MS + 86_400_000)


def test_a_registry_that_is_down_stops_worker_and_archive_and_costs_no_event(world: World):
    tables = simulate(PLAN)
    sent = [Event(*row) for table in tables for row in zip(*(c.to_pylist() for c in table.columns), strict=True)]
    with running_registry({}) as registry:
        events = dataclasses.replace(world.settings.events, format="avro", schema_registry=registry.url)
        stream = dataclasses.replace(world.settings.stream, retries=2, retry_seconds=0.01)
        world.settings = dataclasses.replace(world.settings, events=events, stream=stream)
        run_simulate(world.settings, synthetic=PLAN)
        origins = world.produce(raw=BAD)

        registry.broken = 503, b""
        with pytest.raises(InfrastructureError, match="decoded failed 2 times"):
            run_worker(world.settings, timeout_seconds=120)
        with pytest.raises(InfrastructureError, match="schema registry"):
            run_archive(world.settings)
        assert list_dead_letters(world.settings) == []
        assert not any(world.committed().values())

        registry.broken = None
        run_worker(world.settings, count=len(sent) + len(BAD), timeout_seconds=120)
        world.assert_holds(sent)
        letters = list_dead_letters(world.settings)
        assert {letter.origin: letter.value for letter in letters} == dict(zip(origins, BAD, strict=True))
        assert sorted(letter.reason for letter in letters) == ["not-avro", "unknown-schema"]
        result = run_archive(world.settings)
        assert (result.events, result.bad) == (len(sent), {"not-avro": 1, "unknown-schema": 1})
