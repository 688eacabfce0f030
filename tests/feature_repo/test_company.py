"""A company tries Spoor: the repo of `feast init`, the steps of docs/feast.md, and plain Feast for every read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from feast import FeatureStore

from spoor.feature_repo.settings import FeatureSettings, load_feature_settings
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.reads import historical_features
from spoor.store.rows import EmbeddingRow, UserWrite
from tests.releases import save_untrained_release

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "feast.md").read_text()
DRIVERS = (1001, 1002, 1003, 1004, 1005)  # of Feast's example
STEPS = {
    # As the page says: their entity and their view are passed.
    "int64": re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0],
    # Without: their entity is found, the services hold Spoor's vectors alone, and names have a prefix.
    "string": """
from pathlib import Path

from spoor.feature_repo.definitions import build
from spoor.feature_repo.settings import load_feature_settings

globals().update({f"spoor_{o.name}": o for o in build(load_feature_settings(Path(__file__).parent))})
""",
}


class Company(NamedTuple):
    folder: Path
    features: FeatureSettings
    key: str  # the join key's name
    ids: list[Any]
    applied: list[str]  # what the first and the second `feast apply` said
    dumps: list[dict[str, Any]]  # the registry after each


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("company")
    feast(folder, "init", "shop")
    return folder / "shop"


@pytest.fixture(scope="module", params=["int64", "string"])
def company(request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Company:
    kind: str = request.param
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp(kind) / "shop"))
    key = "driver_id" if kind == "int64" else "driver_no"
    for path in (folder / "feature_repo" / "data").glob("*.parquet"):
        frame = pd.read_parquet(path)
        frame[key] = frame.pop("driver_id").astype("int64" if kind == "int64" else "str")
        frame.to_parquet(path, coerce_timestamps="us")  # DuckDB reads no nanoseconds
    definitions = folder / "feature_repo" / "feature_definitions.py"
    definitions.write_text(definitions.read_text().replace('join_keys=["driver_id"]', f'join_keys=["{key}"]'))
    (folder / "feature_repo" / "spoor_definitions.py").write_text(STEPS[kind])
    settings = f'[features]\nfeature_repo = "feature_repo"\nuser_entity = "driver"\nuser_join_key = "{key}"\n'
    settings += 'prefix = "spoor_"\n' if kind == "string" else ""
    (folder / "spoor.toml").write_text(f'state_folder = "state"\n{settings}[events]\nuser_id_type = "{kind}"\n')
    release = save_untrained_release(
        folder / "releases" / "base-1", items=["i1", "i2"], actions=["view"], surfaces=["home"], trained_through_ms=0
    )
    applied, dumps = [], []
    for _ in range(2):
        applied.append(feast(folder, "-c", "feature_repo", "apply"))
        store = FeatureStore(repo_path=str(folder / "feature_repo"))
        dumps.append(json.loads(json.dumps(store.registry.to_dict(store.project), sort_keys=True)))
    features = load_feature_settings(folder / "feature_repo")
    write(features, release.dimension)
    return Company(folder, features, key, [id_of(kind, driver) for driver in DRIVERS], applied, dumps)


@pytest.fixture(params=["dask", "duckdb"])
def store(company: Company, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """Plain Feast on SQLite and this offline store; `feast init` names none, which is dask. In the repo's folder, from
    which Feast's DuckDB store takes the company's relative paths."""
    monkeypatch.chdir(company.folder / "feature_repo")
    file = company.folder / "feature_repo" / "feature_store.yaml"
    content = {k: v for k, v in yaml.safe_load(file.read_text()).items() if k != "offline_store"}
    file.write_text(
        yaml.safe_dump(content | ({"offline_store": {"type": "duckdb"}} if request.param == "duckdb" else {}))
    )
    return FeatureStore(repo_path=str(company.folder / "feature_repo"))


def feast(folder: Path, *arguments: str) -> str:
    """Feast's own command line, run in `folder`; Spoor is found as an installed package."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SPOOR_")}
    environ |= {"PYTHONPATH": str(ROOT), "FEAST_USAGE": "False"}
    program = Path(sys.executable).with_name("feast")
    ran = subprocess.run([program, *arguments], cwd=folder, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def id_of(kind: str, driver: int) -> Any:
    return driver if kind == "int64" else str(driver)


def write(features: FeatureSettings, dimension: int) -> None:
    """An embedding for every driver, online and offline, as backfill and stream write them."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000) - 60_000
    rows = [
        EmbeddingRow(str(driver), np.eye(dimension, dtype=np.float32)[place], 1, 3, now_ms, now_ms, now_ms, "base-1")
        for place, driver in enumerate(DRIVERS)
    ]
    writes = [UserWrite(row.user_id, 0, 1, b"packed", 3, now_ms, now_ms, [row]) for row in rows]
    assert open_online(features).write(writes).all()
    offline = open_offline(features)
    offline.prepare()
    offline.write_embeddings("base-1", "first", rows[:2])
    offline.write_embeddings("base-1", "second", rows[2:])
    offline.write_histories("first", writes)
    offline.write_items("base-1", "items", ["i1"], np.eye(dimension, dtype=np.float32)[:1], now_ms)


def without_times(dump: dict[str, Any]) -> str:
    return re.sub(r'"(created|lastUpdated)Timestamp": "[^"]*"', "", json.dumps(dump, indent=1, sort_keys=True))


def test_applying_again_changes_nothing(company: Company):
    first, second = company.applied
    assert f"Created feature view {company.features.named('user_embedding_base_1')}" in first
    assert "No changes to registry" in second and "No changes to infrastructure" in second
    assert without_times(company.dumps[0]) == without_times(company.dumps[1])


def test_the_registry_holds_what_spoor_makes_and_what_was_there(company: Company):
    views = {view["spec"]["name"]: view["spec"] for view in company.dumps[1]["featureViews"]}
    named = company.features.named
    ours = {named(name) for name in ("user_history", "user_embedding_base_1", "item_embedding_base_1")}
    assert set(views) == {"driver_hourly_stats", "driver_hourly_stats_fresh"} | ours
    assert not [name for name in ours if views[name].get("online")]
    entities = {entity["spec"]["name"]: entity["spec"] for entity in company.dumps[1]["entities"]}
    assert entities["driver"]["joinKey"] == company.key
    assert "valueType" not in entities["driver"]  # theirs has none


def test_materialise_incremental_leaves_spoor_s_views_alone(company: Company, store: FeatureStore):
    now = datetime.now(UTC)
    store.materialize_incremental(now)
    store.materialize(now - timedelta(days=20), now)  # whatever was materialised before
    answer = read_online(company, store)
    assert [np.argmax(vector) for vector in answer["embedding"]] == [0, 1, 2, 3, 4]
    assert all(rate is not None for rate in answer["conv_rate"])


def test_one_service_mixes_their_features_with_spoor_s_at_a_point_in_time(company: Company, store: FeatureStore):
    entities = pd.DataFrame({company.key: company.ids, "item_id": "i1", "event_timestamp": pd.Timestamp.now("UTC")})
    features = [f"{company.features.named('user_embedding_base_1')}:{name}" for name in ("embedding", "events_used")]
    found = store.get_historical_features(
        entities, ["driver_hourly_stats:conv_rate", *features], filter_by_created_timestamp=True
    ).to_df()
    found = found.sort_values(company.key, ignore_index=True)
    assert [np.argmax(vector) for vector in found["embedding"]] == [0, 1, 2, 3, 4]
    assert found["conv_rate"].notna().all() and found["events_used"].tolist() == [3] * 5
    service = historical_features(company.features, entities, "base-1")
    assert len(service) == 5 and ("conv_rate" in service) == (company.key == "driver_id")


def read_online(company: Company, store: FeatureStore) -> dict[str, Any]:
    view = company.features.named("user_embedding_base_1")
    rows = [{company.key: id, "item_id": "i1"} for id in company.ids]
    service = store.get_feature_service(company.features.named("ranker_base_1"))
    assert store.get_online_features(service, rows).to_dict()["events_used"] == [3] * 5
    return store.get_online_features([f"{view}:embedding", "driver_hourly_stats:conv_rate"], rows).to_dict()
