"""Orders to running workers, and their reports, on a genuine broker: paused without a rebalance, releases taken up
without a restart."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spoor.base.errors import DataError, ProblemsFound
from spoor.broker.create_topics import ensure_topics
from spoor.config import load_settings
from spoor.feature_repo.releases import live_releases
from spoor.operations.orders import pause, reload, resume, status, unwritten, way_to_write
from spoor.operations.releases import promote
from spoor.store.repo import apply
from spoor.streaming.orders.control import (
    Orders,
    Report,
    give_orders,
    group_state,
    orders_file,
    parse_report,
    read_orders,
)
from tests.conftest import free_port, wait_until
from tests.releases import save_untrained_release
from tests.streaming.conftest import ITEMS, RELEASE, ROOT, Worker, World, some_events
from tests.streaming.test_worker import metric, page

OTHER = "base-2"
IN_TIME = 60.0


@pytest.fixture
def own_releases(world: World, untrained_release: Path, tmp_path: Path) -> World:
    """`world` with a releases folder of its own: orders lie in it, and releases come."""
    releases = tmp_path / "releases"
    shutil.copytree(untrained_release, releases)
    world.config.write_text(world.config.read_text().replace(str(untrained_release), str(releases)))
    world.settings = load_settings(file=world.config, environ={})
    return world


def reports(world: World) -> dict[int, Report | None]:
    return group_state(world.settings.kafka, world.settings.stream.group).partitions


def all_partitions_report(world: World) -> bool:
    found = reports(world)
    return len(found) == 4 and all(found.values())


def test_a_paused_worker_takes_nothing_is_healthy_keeps_its_partitions_and_goes_on(own_releases: World):
    world, events, port = own_releases, some_events(120), free_port()
    worker = world.start_worker(SPOOR_STREAM__METRICS_PORT=str(port), SPOOR_STREAM__STALL_SECONDS="3")
    worker.await_log("partitions 0 1 2 3")
    world.produce(events[:40])
    wait_until(world.caught_up, "the first events are committed")
    done = pause(world.settings, timeout_seconds=IN_TIME)
    assert done.orders.paused and done.state.all_report(lambda report: report.paused)
    assert pause(world.settings, timeout_seconds=IN_TIME) == done
    assert f"  partitions 0 1 2 3: paused, writes {RELEASE} (" in done.text()
    before = world.committed()
    world.produce(events[40:80])
    wait_until(lambda: metric(port, "spoor_stream_lag_records") == 40, "what waits is seen")
    assert (metric(port, "spoor_stream_paused"), metric(port, "spoor_stream_records_total")) == (1, 40)
    assert page(port, "/healthz") == page(port, "/readyz") == (200, "paused\n")

    second = world.start_worker(SPOOR_STREAM__STALL_SECONDS="3")
    wait_until(
        lambda: len({report.member for report in reports(world).values() if report}) == 2, "both have partitions"
    )
    wait_until(
        lambda: status(world.settings).state.all_report(lambda report: report.paused), "the second is paused too"
    )
    assert world.committed() == before
    assert worker.process.poll() is None  # 3 s without progress would have ended it

    resume(world.settings, timeout_seconds=IN_TIME)
    world.produce(events[80:])
    wait_until(world.caught_up, "all is committed")
    assert not status(world.settings).orders.paused
    assert worker.log.count("partitions ") == 2  # its start, and the second worker: the orders moved none
    for each in (worker, second):
        each.process.send_signal(signal.SIGTERM)
        assert each.ended() == 0, each.log
    world.assert_holds(events)


def test_a_running_worker_takes_up_a_new_release_and_refuses_a_broken_one(own_releases: World):
    world, events = own_releases, some_events(180)
    folder = world.settings.features.releases_folder
    worker = world.start_worker()
    worker.await_log("partitions 0 1 2 3")
    world.produce(events[:60])
    wait_until(world.caught_up, "the first events are committed")

    save_untrained_release(folder / OTHER, items=ITEMS, actions=["view"], surfaces=["home"], seed=1)
    weights = folder / OTHER / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    apply(world.settings.features)
    with pytest.raises(ProblemsFound, match=r"go on with the releases that they have.*checksum"):
        reload(world.settings, timeout_seconds=IN_TIME)
    assert status(world.settings).state.all_report(lambda report: report.releases == (RELEASE,))
    with pytest.raises(ProblemsFound, match="not every worker of group"):
        promote(world.settings, OTHER)
    world.produce(events[60:120])
    wait_until(world.caught_up, "the worker goes on")
    users = sorted(world.online().user_ids())
    assert world.online().read_embeddings(OTHER, users) == [None] * len(users)

    weights.write_bytes(whole)
    done = reload(world.settings, timeout_seconds=IN_TIME)
    assert done.state.all_report(lambda report: report.releases == (RELEASE, OTHER) and not report.problem)
    assert unwritten(world.settings, [RELEASE, OTHER, "base-3"]) == ["base-3"]
    world.produce(events[120:])
    wait_until(world.caught_up, "the last events are committed")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0, worker.log
    assert worker.log.count("partitions ") == 1
    world.assert_holds(events)
    users = sorted({event.user_id for event in events[120:]})
    for stored in world.online().read(users, [RELEASE, OTHER]):
        assert set(stored.embedding_revisions.values()) == {stored.revision}


def test_a_worker_that_was_started_for_certain_releases_takes_up_no_other_and_every_hint_says_so(own_releases: World):
    world, again = own_releases, "start the workers again without --release"
    pinned = world.start_worker(SPOOR_STREAM__RELEASES=RELEASE)
    wait_until(lambda: all_partitions_report(world), "it reports")
    assert f"writes {RELEASE}, which were named at its start" in status(world.settings).text()
    assert reload(world.settings, timeout_seconds=IN_TIME).state.workers == 1  # it writes all there is
    save_untrained_release(
        world.settings.features.releases_folder / OTHER, items=ITEMS, actions=["view"], surfaces=["home"], seed=1
    )
    apply(world.settings.features)
    with pytest.raises(ProblemsFound, match="partitions 0 1 2 3 were started for certain releases") as ignored:
        reload(world.settings, timeout_seconds=IN_TIME)
    with pytest.raises(ProblemsFound, match="not every worker of group") as refused:
        promote(world.settings, OTHER)
    for hint in (ignored.value.hint, refused.value.hint, way_to_write(world.settings, [OTHER])):
        assert again in hint and "reload` lets" not in hint
    pinned.process.send_signal(signal.SIGTERM)  # the hint, followed
    assert pinned.ended() == 0, pinned.log
    world.start_worker()
    wait_until(lambda: all_partitions_report(world), "the next one reports")
    assert unwritten(world.settings, [RELEASE, OTHER]) == []


def test_orders_stand_for_workers_that_start_later_and_those_that_cannot_be_read_change_nothing(own_releases: World):
    world = own_releases
    folder, group = world.settings.features.releases_folder, world.settings.stream.group
    assert pause(world.settings, timeout_seconds=IN_TIME).state.workers == 0
    worker = world.start_worker()
    world.produce(some_events(10))
    wait_until(lambda: any(report and report.paused for report in reports(world).values()), "it is paused")
    assert sum(world.committed().values()) == 0
    resume(world.settings, timeout_seconds=IN_TIME)
    wait_until(world.caught_up, "it works")
    orders_file(folder, group).write_text("{")
    worker.await_log("holds no orders")
    with pytest.raises(DataError, match="holds no orders"):
        pause(world.settings, timeout_seconds=IN_TIME)
    world.produce(some_events(10))
    wait_until(world.caught_up, "it works on")


def test_an_order_to_reload_is_no_earlier_one_though_the_file_was_removed_between_them(own_releases: World):
    """Else a worker that has followed the first, and has not seen the file away, counts as having followed both."""
    world = own_releases
    first = reload(world.settings, timeout_seconds=IN_TIME).orders
    orders_file(world.settings.features.releases_folder, world.settings.stream.group).unlink()
    assert reload(world.settings, timeout_seconds=IN_TIME).orders != first


def test_groups_have_orders_of_their_own_whatever_their_names(tmp_path: Path):
    give_orders(tmp_path, "a/b", Orders(paused=True, reload="3"))
    assert read_orders(tmp_path, "a/b") == Orders(paused=True, reload="3")
    assert read_orders(tmp_path, "a") == Orders()
    assert live_releases(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 100_000, '{"paused": "false", "reload": ""}', '{"paused": true, "reload": Infinity}'],
    ids=lambda text: text[:40],
)
def test_what_holds_no_orders_is_a_data_error(tmp_path: Path, text: str):
    orders_file(tmp_path, "a").write_text(text)
    with pytest.raises(DataError, match="holds no orders"):
        read_orders(tmp_path, "a")


def test_a_report_fits_beside_an_offset_and_is_told_from_other_metadata():
    report = Report("worker-1", ("base-1", "base-2"), "4", False, "x" * 10_000)
    assert len(report.text()) < 1000
    assert len(replace(report, problem="\N{CLOUD}" * 10_000).text().encode()) < 1000
    found = parse_report(report.text())
    assert found is not None and replace(found, problem="") == replace(report, problem="")
    for text in ("", "rewound", "[]", "{}", json.dumps({"releases": []})):
        assert parse_report(text) is None


def test_a_worker_beyond_the_partitions_is_announced_and_stands_by(own_releases: World, tmp_path: Path):
    world = own_releases
    topic = world.settings.kafka.topic
    text = world.config.read_text().replace(f'topic = "{topic}"', f'topic = "{topic}-1"\npartitions = 1')
    world.config.write_text(text)
    world.settings = load_settings(file=world.config, environ={})
    ensure_topics(world.settings.kafka, releases=[RELEASE])
    first = world.start_worker()
    first.await_log("partitions 0")
    log = tmp_path / "second.log"
    with open(log, "wb") as errors:
        command = [sys.executable, "-m", "spoor", "--config", str(world.config), "stream"]
        second = Worker(subprocess.Popen(command, stdout=errors, stderr=errors, cwd=ROOT), log, tmp_path / "none")
    world.workers.append(second)
    second.await_log("no partition for this worker: all 1 of")
    assert "the group has 1 workers for 1 partitions: one more can only stand by" in second.log
    wait_until(lambda: status(world.settings).state.workers == 2, "it stays in the group")
    first.process.send_signal(signal.SIGTERM)
    second.await_log("partitions 0")
    wait_until(lambda: all(reports(world).values()) and set(reports(world)) == {0}, "it has it and reports")
