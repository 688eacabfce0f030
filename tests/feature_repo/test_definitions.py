"""What `feast apply` registers: rendered and compared to plan.txt, and run for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView

from spoor.base.errors import UsageError
from spoor.feature_repo import definitions
from spoor.feature_repo.definitions import build
from spoor.feature_repo.releases import PROMOTED_FILE
from spoor.feature_repo.settings import FeatureSettings, load_feature_settings
from spoor.store.online import open_online
from spoor.store.reads import historical_features
from spoor.store.repo import create_repo

ROOT = Path(__file__).parents[2]
PLAN = Path(__file__).with_name("plan.txt")


def add_release(folder: Path, name: str, **content: object) -> None:
    described = {"name": name, "dimension": 32, "trained_through_ms": 1_700_000_000_123} | content
    (folder / name).mkdir(parents=True)
    (folder / name / "release.json").write_text(json.dumps(described))


@pytest.fixture
def features(tmp_path: Path) -> FeatureSettings:
    add_release(tmp_path / "releases", "base-3")
    add_release(tmp_path / "releases", "base-2", retired=True)
    return FeatureSettings(
        feature_repo=tmp_path / "repo", releases_folder=tmp_path / "releases", offline_folder=tmp_path / "offline"
    )


def render(settings: FeatureSettings) -> str:
    """The objects as a reader of a plan would want them, one fact a line."""
    lines: list[str] = []
    for o in build(settings):
        if isinstance(o, Entity):
            lines.append(f"entity {o.name}: join key {o.join_key} {o.value_type.name}")
        elif isinstance(o, FeatureView):
            assert o.batch_source is not None
            path = str(o.batch_source.path).replace(str(settings.offline_folder), "OFFLINE")
            times = f"{o.batch_source.timestamp_field}, {o.batch_source.created_timestamp_column}"
            lines.append(f"view {o.name} of {o.entities[0]}: online={o.online} ttl={o.ttl} from {path} by {times}")
            lines += [f"    {field.name} {field.dtype}" for field in o.features]
        elif isinstance(o, FeatureService):
            lines.append(f"service {o.name}")
            for projection in o.feature_view_projections:
                lines.append(f"    {projection.name}: {', '.join(field.name for field in projection.features)}")
        if tags := getattr(o, "tags", None):
            lines.append("    tags " + " ".join(f"{key}={value}" for key, value in sorted(tags.items())))
    return "\n".join(lines) + "\n"


def test_the_plan_of_a_repo_with_one_live_release(features):
    assert render(features) == PLAN.read_text(), "if the change is meant, write the new plan into plan.txt"


def test_the_alias_has_the_features_and_tags_of_the_promoted_release(features):
    note = {"release": "base-3", "previous": "base-2", "promoted_at_ms": 1}
    (features.releases_folder / PROMOTED_FILE).write_text(json.dumps(note))
    add_release(features.releases_folder, "base-4")
    services = {o.name: o for o in build(features) if isinstance(o, FeatureService)}
    assert set(services) == {"ranker", "ranker_base_3", "ranker_base_4"}
    alias, pinned = services["ranker"], services["ranker_base_3"]
    assert alias.feature_view_projections == pinned.feature_view_projections
    assert alias.tags == pinned.tags and alias.tags["model_version"] == "base-3"


def test_the_service_of_a_space_shows_the_release_that_was_promoted_in_it(features):
    add_release(features.releases_folder, "base-4", aligned={"space": "base-3"})
    add_release(features.releases_folder, "base-5")
    note = {"release": "base-5", "previous": "base-4", "promoted_at_ms": 1}
    aligned = {"base-3": "base-4", "base-5": "base-5"}
    (features.releases_folder / PROMOTED_FILE).write_text(json.dumps(note | {"aligned": aligned}))
    services = {o.name: dict(o.tags) for o in build(features) if isinstance(o, FeatureService)}
    found = {name: (tags["model_version"], tags["space"]) for name, tags in services.items() if "aligned" in name}
    assert found == {
        "aligned_ranker_base_3": ("base-4", "base-3"),
        "aligned_ranker_base_5": ("base-5", "base-5"),
    }


def test_the_service_has_no_two_features_of_one_name(features):
    (service,) = [o for o in build(features) if isinstance(o, FeatureService)]
    shown = [field.name for projection in service.feature_view_projections for field in projection.features]
    assert len(shown) == len(set(shown))


def test_definitions_are_import_light():
    script = """
import sys, feast, feast.types
before = set(sys.modules)
import spoor.feature_repo.definitions
added = {".".join(name.split(".")[:2]) for name in set(sys.modules) - before}
print(*sorted(name for name in added if name.partition(".")[0] not in sys.stdlib_module_names))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.split() == ["spoor", "spoor.activity", "spoor.base", "spoor.feature_repo"]


def test_importing_the_definitions_as_a_package_reads_no_settings_and_registers_nothing():
    assert not [value for value in vars(definitions).values() if isinstance(value, FeatureView | FeatureService)]


def test_feast_apply_from_the_command_line_serves_spoor_and_plain_feast_and_forgets_what_is_gone(tmp_path):
    repo = copy_of_the_repo(tmp_path)
    add_release(tmp_path / "releases", "base-3")
    applied = feast(tmp_path, "-c", "feature_repo", "apply")
    for line in ("feature view user_history", "feature view user_embedding_base_3", "feature service ranker_base_3"):
        assert f"Created {line}" in applied
    assert "activity" not in applied  # the example views are the demo's
    assert sorted(path.name for path in (tmp_path / ".spoor").iterdir()) == ["online.db", "registry.db"]

    features = load_feature_settings(repo)
    open_online(features).check()
    store = FeatureStore(repo_path=str(repo))
    service = store.get_feature_service("ranker_base_3")
    answer = store.get_online_features(service, [{"user_id": "ann", "item_id": "i1"}]).to_dict()
    assert answer["embedding"] == [None]
    entities = pd.DataFrame({"user_id": ["ann"], "item_id": ["i1"], "event_timestamp": [datetime.now(UTC)]})
    assert historical_features(features, entities, "base-3")["events_used"].isna().all()

    (tmp_path / "releases" / "base-3" / "release.json").unlink()
    assert "Deleted feature view user_embedding_base_3" in feast(tmp_path, "-c", "feature_repo", "apply")


def test_a_repo_of_one_s_own_takes_its_settings_from_spoor_toml(tmp_path):
    add_release(tmp_path / "models", "base-3")
    create_repo(tmp_path / "theirs", online_store={"type": "sqlite"}, state_folder=tmp_path / "state")
    (tmp_path / "state").mkdir()
    (tmp_path / "spoor.toml").write_text(
        'state_folder = "state"\n[features]\nreleases_folder = "models"\nuser_entity = "member"\n'
        'user_join_key = "member_no"\n[events]\nuser_id_type = "int64"\n[kafka]\nport = 1\n'
    )
    feast(tmp_path, "-c", "theirs", "apply")
    member = FeatureStore(repo_path=str(tmp_path / "theirs")).get_entity("member")
    assert (member.join_key, member.value_type.name) == ("member_no", "INT64")
    open_online(load_feature_settings(tmp_path / "theirs")).check(["base-3"])


def copy_of_the_repo(folder: Path) -> Path:
    """The committed Feast repo in a folder where applying leaves no trace in the checkout."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "feature_repo", folder / "feature_repo", ignore=ignore))


def feast(folder: Path, *arguments: str) -> str:
    """Feast's own command line, run in `folder`; Spoor is found as an installed package."""
    program = Path(sys.executable).with_name("feast")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SPOOR_")}
    environ |= {"PYTHONPATH": str(ROOT), "FEAST_USAGE": "False"}
    ran = subprocess.run([program, *arguments], cwd=folder, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ('name="user", join_keys=["uid"]', "join key uid"),
        ('name="user", value_type=ValueType.STRING', "join key user "),
        ('name="user", join_keys=["user_id"], value_type=feast.ValueType.INT64', "type INT64"),
    ],
)
def test_an_entity_of_another_shape_in_the_repo_s_files_is_refused(features, written, found):
    features.feature_repo.mkdir()
    (features.feature_repo / "theirs.py").write_text(f"who = feast.Entity({written})\n")
    with pytest.raises(UsageError, match=found) as refused:
        build(features)
    assert "features.user_join_key" in refused.value.hint


@pytest.mark.parametrize("written", ['"user", join_keys=KEYS', '"user", join_keys=["user_id"], description="ours"'])
def test_an_entity_in_the_repo_s_files_is_used_as_it_is(features, written):
    features.feature_repo.mkdir()
    (features.feature_repo / "theirs.py").write_text(f"who = Entity(name={written})\n")
    assert [o.name for o in build(features) if isinstance(o, Entity)] == ["item"]
