"""Which releases a worker keeps fresh, and what it asks its store before it joins the group."""

import dataclasses
from pathlib import Path

import pytest

from spoor.activity.settings import HistorySettings
from spoor.base.errors import UsageError
from spoor.config import Settings
from spoor.encoder.release.info import read_info
from spoor.store.repo import apply, create_repo
from spoor.streaming.pipeline.stores import open_writer, releases_to_keep_fresh


def with_releases(settings, folder, *releases):
    features = dataclasses.replace(settings.features, releases_folder=folder)
    stream = dataclasses.replace(settings.stream, releases=releases)
    return dataclasses.replace(settings, features=features, stream=stream)


def test_every_live_release_or_the_configured_ones(settings, untrained_release):
    assert releases_to_keep_fresh(with_releases(settings, untrained_release)) == ["base-1"]
    assert releases_to_keep_fresh(with_releases(settings, untrained_release, "base-1")) == ["base-1"]


def test_no_release_is_a_usage_error_that_says_how_to_get_one(settings, tmp_path):
    with pytest.raises(UsageError, match="no live release") as raised:
        releases_to_keep_fresh(with_releases(settings, tmp_path))
    assert "spoor pretrain" in raised.value.hint


def test_definitions_that_were_applied_with_other_keys_are_refused_before_anything_is_written(
    settings: Settings, untrained_release: Path
):
    applied = with_releases(settings, untrained_release)
    features = dataclasses.replace(applied.features, feature_repo=settings.state_folder / "feature_repo")
    create_repo(features.feature_repo, online_store={"type": "sqlite"}, state_folder=settings.state_folder)
    apply(features)
    changed = dataclasses.replace(applied, features=dataclasses.replace(features, user_id_type="int64"))
    with pytest.raises(UsageError, match="not applied: view `user_history` has keys") as raised:
        open_writer(changed, ["base-1"], observe=lambda step: None)
    assert "apply" in raised.value.hint
    same = dataclasses.replace(applied, features=features)
    writer, close = open_writer(same, ["base-1"], observe=lambda step: None)
    assert writer.online.dimension("base-1") > 0
    close()


def test_histories_that_are_shorter_than_a_release_reads_are_warned_of(
    settings: Settings, untrained_release: Path, caplog: pytest.LogCaptureFixture
):
    length = read_info(untrained_release / "base-1").max_events
    for kept, warned in ((length - 1, True), (length, False)):
        caplog.clear()
        short = dataclasses.replace(
            with_releases(settings, untrained_release), history=HistorySettings(max_events=kept)
        )
        with pytest.raises(UsageError):  # nothing is applied: the warning comes before the store is asked
            open_writer(short, ["base-1"], observe=lambda step: None)
        assert (f"Set history.max_events to {length}" in caplog.text) is warned
