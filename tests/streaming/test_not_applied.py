"""Between placing a release's folder and `feast apply`, everybody works with the releases that are applied."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from spoor import cli
from spoor.base.errors import UsageError
from spoor.batch.forget.forget import run_forget
from spoor.batch.kafka.archive import run_archive
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.verify import run_verify
from spoor.operations.releases import promote
from spoor.operations.show import show_user
from spoor.store.feast_store import live_names
from spoor.store.repo import apply
from spoor.streaming.worker import run_worker
from tests.releases import save_untrained_release
from tests.streaming.conftest import ITEMS, RELEASE, START_MS, World, some_events

PLACED = "base-2"


@pytest.fixture
def placed(world: World, tmp_path: Path) -> World:
    """`world` whose folder of releases holds one more, which is not applied."""
    folder = tmp_path / "releases"
    shutil.copytree(world.settings.features.releases_folder, folder)
    config = world.config.read_text().replace(str(world.settings.features.releases_folder), str(folder))
    world.config.write_text(config)
    features = dataclasses.replace(world.settings.features, releases_folder=folder)
    world.settings = dataclasses.replace(world.settings, features=features)
    save_untrained_release(
        folder / PLACED, items=ITEMS, actions=["view", "like"], surfaces=["home"], trained_through_ms=START_MS, seed=1
    )
    return world


def test_worker_jobs_and_reads_use_the_applied_release_and_name_the_other(
    placed: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    assert live_names(placed.settings.features) == ([RELEASE], [PLACED])
    assert f"release {PLACED} is in" in caplog.text and "not applied" in caplog.text
    events = some_events(60, users=6)
    placed.produce(events)
    run_worker(placed.settings, count=len(events), timeout_seconds=120)
    placed.assert_holds(events)
    run_archive(placed.settings)
    filled = run_backfill(placed.settings)
    assert (filled.releases, filled.not_applied) == ((RELEASE,), (PLACED,))
    found = run_verify(placed.settings)
    assert (found.releases, found.not_applied, found.differences) == ((RELEASE,), (PLACED,), 0)
    assert [shown.release for shown in show_user(placed.settings, events[0].user_id).embeddings] == [RELEASE]
    assert run_forget(placed.settings, [events[0].user_id]).online == 1
    code = cli.run(["--config", str(placed.config), "stream", "--dry-run", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (code, shown["releases"], shown["not_applied"]) == (0, [RELEASE], [PLACED])
    code = cli.run(["--config", str(placed.config), "backfill", "--dry-run", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (code, shown["releases"], shown["not_applied"]) == (0, [RELEASE], [PLACED])


def test_who_names_a_release_that_is_not_applied_is_refused(placed: World):
    stream = dataclasses.replace(placed.settings.stream, releases=(PLACED,))
    for refused in (
        lambda: run_worker(dataclasses.replace(placed.settings, stream=stream), timeout_seconds=60),
        lambda: run_backfill(placed.settings, releases=[PLACED]),
        lambda: promote(placed.settings, PLACED),
    ):
        with pytest.raises(UsageError) as caught:
            refused()
        assert PLACED in caught.value.message + caught.value.hint


def test_once_applied_it_is_used(placed: World):
    apply(placed.settings.features)
    assert live_names(placed.settings.features) == ([RELEASE, PLACED], [])


def test_under_a_prefix_too(placed: World):
    """Histories of another prefix are refused, so these are the first."""
    features = dataclasses.replace(
        placed.settings.features, prefix="spoor_", offline_folder=placed.folder / "offline-of-the-prefix"
    )
    apply(features)
    assert live_names(features) == ([RELEASE, PLACED], [])
