"""A company's own shape of events ([events.fields], [events.defaults]), through a worker, an archive and a backfill."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

from spoor.activity.events import Event
from spoor.activity.settings import EventDefaults, EventFields
from spoor.batch.kafka.archive import run_archive
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.verify import run_verify
from spoor.operations.simulate import run_simulate
from spoor.streaming.orders.replay import list_dead_letters
from spoor.streaming.worker import run_worker
from tests.streaming.conftest import World, some_events

FIELDS = EventFields("payload.user.id", "payload.sku", "verb", "client", "occurredAt")


def theirs(event: Event) -> bytes:
    """The event as a shop's tracker might write it: nested, with a time in ISO 8601, and without a surface."""
    at = datetime.fromtimestamp(event.timestamp / 1000, UTC).isoformat(timespec="milliseconds")
    payload = {"user": {"id": event.user_id, "plan": ["free"]}, "sku": event.item_id}
    return json.dumps({"schema": 3, "payload": payload, "verb": event.action, "occurredAt": at}).encode()


def test_a_shop_s_own_fields_go_through_worker_archive_and_backfill(world: World):
    events = dataclasses.replace(world.settings.events, fields=FIELDS, defaults=EventDefaults(surface="home"))
    world.settings = dataclasses.replace(world.settings, events=events)
    sent = some_events(120)
    ours = json.dumps({"user_id": "user-1", "item_id": "item-1", "action": "view", "timestamp": 1}).encode()
    world.produce(raw=[*map(theirs, sent), ours])
    run_worker(world.settings, count=len(sent) + 1, timeout_seconds=120)
    world.assert_holds(sent)
    (letter,) = list_dead_letters(world.settings)
    assert (letter.reason, letter.value) == ("missing-field", ours)
    assert (letter.field, letter.found) == ("user_id", "nothing") and letter.expected.endswith("in `payload.user.id`")
    archived = run_archive(world.settings)
    assert (archived.events, archived.bad) == (len(sent), {"missing-field": 1})
    run_backfill(world.settings)
    assert run_verify(world.settings).differences == 0


def test_what_simulate_sends_of_a_file_in_that_shape_is_what_a_worker_reads(world: World, tmp_path):
    events = dataclasses.replace(world.settings.events, fields=FIELDS, defaults=EventDefaults(surface="home"))
    world.settings = dataclasses.replace(world.settings, events=events)
    sent = some_events(60, seed=1)
    file = tmp_path / "theirs.jsonl"
    file.write_bytes(b"\n".join(map(theirs, sent)) + b"\n")
    assert run_simulate(world.settings, data=file).events == len(sent)
    run_worker(world.settings, count=len(sent), timeout_seconds=120)
    world.assert_holds(sent)
    assert list_dead_letters(world.settings) == []
