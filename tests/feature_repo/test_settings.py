"""Where the definitions find their settings when Feast runs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spoor.activity.settings import EventSettings
from spoor.base.errors import UsageError
from spoor.feature_repo.settings import FeatureSettings, agree_on_ids, load_feature_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("SPOOR_")]:
        monkeypatch.delenv(name)
    (tmp_path / "repo").mkdir()
    monkeypatch.chdir(tmp_path / "repo")  # as Feast does


def test_without_a_file_paths_are_beside_the_repo(tmp_path):
    settings = load_feature_settings(tmp_path / "repo")
    assert settings == FeatureSettings(
        feature_repo=tmp_path / "repo",
        releases_folder=tmp_path / "releases",
        offline_folder=tmp_path / ".spoor" / "offline",
    )


@pytest.mark.parametrize("place", ["repo/spoor.toml", "spoor.toml"])
def test_a_file_in_the_repo_or_above_it_is_found(tmp_path, place):
    (tmp_path / place).write_text('state_folder = "s"\n[features]\nuser_join_key = "uid"\n[stream]\ngroup = "x"\n')
    settings = load_feature_settings(tmp_path / "repo")
    assert settings.user_join_key == "uid"
    assert settings.offline_folder == (tmp_path / place).parent / "s" / "offline"
    assert settings.feature_repo == tmp_path / "repo"


def test_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("SPOOR_FEATURES__RELEASES_FOLDER", "/elsewhere")
    monkeypatch.setenv("SPOOR_STATE_FOLDER", "/state")
    settings = load_feature_settings(tmp_path / "repo")
    assert settings.releases_folder == Path("/elsewhere") and settings.offline_folder == Path("/state/offline")


def test_spoor_config_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "other.toml").write_text('[features]\nitem_entity = "product"\n')
    monkeypatch.setenv("SPOOR_CONFIG", str(tmp_path / "other.toml"))
    assert load_feature_settings(tmp_path / "repo").item_entity == "product"


def test_the_user_id_s_type_follows_the_events(tmp_path):
    (tmp_path / "spoor.toml").write_text('[events]\nuser_id_type = "int64"\n')
    assert load_feature_settings(tmp_path / "repo").user_id_type == "int64"
    with pytest.raises(UsageError, match="user_id_type"):
        agree_on_ids(EventSettings(), FeatureSettings(user_id_type="int64"))
