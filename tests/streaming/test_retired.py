"""A release that is retired while a worker writes it: the worker leaves it out and goes on with the others."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from spoor.base.errors import UsageError
from spoor.broker.create_topics import ensure_topics
from spoor.config import load_settings
from spoor.encoder.release.folder import mark_retired
from spoor.operations.releases import retire
from spoor.store.publication import Rows
from spoor.store.repo import apply
from spoor.streaming.pipeline.processor import BatchProcessor
from spoor.streaming.pipeline.stores import Stores
from spoor.streaming.worker import run_worker
from tests.conftest import wait_until
from tests.releases import save_untrained_release
from tests.streaming.conftest import ITEMS, RELEASE, START_MS, World, some_events

OTHER = "base-2"


@pytest.fixture
def two_releases(world: World, untrained_release: Path, tmp_path: Path) -> World:
    """`world` with a releases folder of its own, in which there is a second release."""
    releases = tmp_path / "releases"
    shutil.copytree(untrained_release, releases)
    save_untrained_release(
        releases / OTHER, items=ITEMS, actions=["view"], surfaces=["home"], seed=1, trained_through_ms=START_MS
    )
    world.config.write_text(world.config.read_text().replace(str(untrained_release), str(releases)))
    world.settings = load_settings(file=world.config, environ={})
    apply(world.settings.features)
    ensure_topics(world.settings.kafka, releases=[RELEASE, OTHER])
    return world


def topics(world: World) -> set[str]:
    admin = KafkaAdminClient(**world.settings.kafka.client_options())
    found = set(admin.list_topics())
    admin.close()
    return found


def test_a_running_worker_leaves_a_retired_release_and_goes_on(two_releases: World):
    world, events = two_releases, some_events(240)
    worker = world.start_worker()
    worker.await_log("partitions 0 1 2 3")
    world.produce(events[:120])
    wait_until(world.caught_up, "the first half is committed")
    users = sorted(world.online().user_ids())
    assert all(world.online().read_embeddings(OTHER, users))
    result = retire(world.settings, OTHER)
    assert result.topic_deleted and result.landed_rows > 0
    world.produce(events[120:])
    wait_until(world.caught_up, "the second half is committed")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.log
    assert f"release {OTHER} is retired" in worker.log
    world.assert_holds(events)
    assert world.settings.kafka.embedding_topic(OTHER) not in topics(world)


def test_a_worker_whose_topic_goes_between_write_and_publication_publishes_the_rest(two_releases: World):
    """The mark is set after the check before the write: the publication fails, and its next try leaves the release."""
    world, events = two_releases, some_events(60)
    quick = dataclasses.replace(world.settings.kafka, request_timeout_seconds=3.0)
    settings = dataclasses.replace(world.settings, kafka=quick)
    world.produce(events)
    publish, retired = Stores.publish, []

    async def retire_first(self: Stores, rows: Rows) -> int:
        if not retired:
            assert OTHER in rows
            retired.append(await self.in_thread(retire, world.settings, OTHER))
        return await publish(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stores, "publish", retire_first)
        summary = run_worker(settings, count=len(events), timeout_seconds=120)
    assert summary.events == len(events) and retired[0].topic_deleted
    world.assert_holds(events)


def test_a_worker_without_any_release_left_stops_with_its_offsets_uncommitted(two_releases: World):
    world = two_releases
    stream = dataclasses.replace(world.settings.stream, releases=(OTHER,))
    settings = dataclasses.replace(world.settings, stream=stream)
    opened = BatchProcessor.open

    async def open_then_retire(self: BatchProcessor) -> None:
        await opened(self)
        mark_retired(world.settings.features.releases_folder / OTHER)

    world.produce(some_events(5))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UsageError, match=r"every release .* is retired"):
        patch.setattr(BatchProcessor, "open", open_then_retire)
        run_worker(settings, timeout_seconds=120)
    assert not world.caught_up()
