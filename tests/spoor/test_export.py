"""`spoor export` as a command; tests/batch/users/test_export.py holds what it writes against store and release."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spoor.config import Settings
from spoor.store.repo import apply, create_repo
from tests.releases import save_untrained_release


@pytest.fixture
def given(tmp_path: Path, settings: Settings, make_settings: Callable[..., Settings]) -> list[str]:
    """The options that name an applied Feast repo with one release and no users."""
    folders = {"features.feature_repo": tmp_path / "repo", "features.releases_folder": tmp_path / "releases"}
    made = make_settings(**{key.replace(".", "__"): folder for key, folder in folders.items()})
    save_untrained_release(made.features.releases_folder / "base-1", items=["a", "b"], actions=["view"], surfaces=["s"])
    create_repo(made.features.feature_repo, online_store={"type": "sqlite"}, state_folder=settings.state_folder)
    apply(made.features)
    return [word for key, folder in folders.items() for word in ("--set", f"{key}={folder}")]


def test_vectors_are_written_and_counted(spoor: Callable[..., Any], given: list[str]):
    planned = spoor(*given, "export", "--to", "vectors", "--dry-run")
    assert (planned.code, planned.out) == (0, "base-1: 0 users listed, 2 item vectors to write\n")
    assert not Path("vectors").exists()
    done = spoor(*given, "export", "--to", "vectors", "--json")
    assert (done.code, done.json["files"]) == (0, 1)
    assert done.json["releases"] == [{"release": "base-1", "dimension": 16, "users": 0, "items": 2}]
    assert "earlier export" in spoor(*given, "export", "--to", "vectors").failed_with(2)
    users = spoor(*given, "export", "--to", "vectors", "--users", "--overwrite")
    assert users.out.startswith("base-1: 0 users, 0 items to vectors in ")


def test_a_release_that_is_not_there_is_told_before_anything_is_written(spoor: Callable[..., Any], given: list[str]):
    assert "release `nope` is not in" in spoor(*given, "export", "--to", "v", "--release", "nope").failed_with(2)
