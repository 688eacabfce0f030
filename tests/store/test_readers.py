"""Whatever reads Parquet folders reads the offline log: Feast's DuckDB and dask stores, pyarrow, pandas, DuckDB."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore

from spoor.activity.lake import Lake
from spoor.base.errors import DataError, UsageError
from spoor.feature_repo.definitions import source_folder, source_path
from spoor.feature_repo.settings import FeatureSettings
from spoor.ranking.features.existing_features import write_existing_features
from spoor.store.offline import SCHEMA_FILE, OfflineLog
from spoor.store.reads import historical_features
from spoor.store.rows import EmbeddingRow, UserWrite
from tests.store.conftest import make_repo
from tests.store.toys import DIMENSION

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
VIEW = "user_embedding_base_1"
FOLDERS = ["run [1]", "a*b", "what?", "ü, {x} 50% #1 ["]
Repo = Callable[..., FeatureSettings]


@pytest.fixture(params=["duckdb", None])
def offline_store(request: pytest.FixtureRequest) -> str | None:
    """The offline store's type in feature_store.yaml; None: not named, as `feast init` leaves it."""
    return request.param


@pytest.fixture
def repo(tmp_path: Path, offline_store: str | None) -> Repo:
    return lambda folder="plain", **settings: repo_with(tmp_path / folder, offline_store, **settings)


def repo_with(folder: Path, offline_store: str | None, **settings: object) -> FeatureSettings:
    features = make_repo(folder, {"type": "sqlite"}, **settings)
    file = features.feature_repo / "feature_store.yaml"
    content = yaml.safe_load(file.read_text())
    content["offline_store"] = {"type": offline_store}
    if offline_store is None:
        del content["offline_store"]
    file.write_text(yaml.safe_dump(content, allow_unicode=True))
    return features


def embedding(user: str, event_ms: int, number: int) -> EmbeddingRow:
    return EmbeddingRow(user, np.eye(DIMENSION, dtype=np.float32)[number], number, 3, event_ms, event_ms, 0, "base-1")


def fill(features: FeatureSettings) -> None:
    """Two users' embeddings on two days, a history, an item, a row of counts."""
    log, key = OfflineLog(features), "7" if features.user_id_type == "int64" else "ann"
    log.write_embeddings("base-1", "a", [embedding(key, START_MS, 1), embedding("8", START_MS, 3)])
    log.write_embeddings("base-1", "b", [embedding(key, START_MS + DAY_MS, 2)])
    log.write_histories("a", [UserWrite(key, 0, 1, b"packed", 1, START_MS, START_MS, [])])
    log.write_items("base-1", "items", ["i1"], np.eye(DIMENSION, dtype=np.float32)[:1], START_MS)
    at = datetime.fromtimestamp(START_MS / 1000, UTC)
    counts = {f"user_{name}": [2, 2] for name in ("events_total", "events_7d", "events_28d")}
    rows = {"user_id": [key, "8"], **counts, "user_positive_rate": pa.array([0.5, 1], pa.float32())}
    log.write_rows("user_activity", "a", pa.table(rows | {"event_timestamp": [at] * 2, "created_timestamp": [at] * 2}))


def ask(features: FeatureSettings, users: list[object], times_ms: list[int]) -> pd.DataFrame:
    times = [pd.Timestamp(time, unit="ms", tz="UTC") for time in times_ms]
    entities = pd.DataFrame({features.user_join_key: users, "item_id": "i1", "event_timestamp": times})
    return historical_features(features, entities, "base-1").sort_values("event_timestamp", ignore_index=True)


@pytest.mark.parametrize("offline_store", ["dask", "file"])
def test_a_store_that_is_named_reads_as_feast_s_default_does(repo: Repo):
    features = repo()
    fill(features)
    assert ask(features, ["ann"], [START_MS])["events_used"].tolist() == [3]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_view_is_read_before_its_first_row_and_after_it(repo: Repo, folder: str):
    features = repo(folder)
    times = [START_MS, START_MS + 2 * DAY_MS]
    before = ask(features, ["ann"] * 2, times)
    assert len(before) == 2 and before["events_used"].isna().all() and before["user_events_total"].isna().all()
    fill(features)
    after = ask(features, ["ann"] * 2, times)
    assert [int(np.argmax(vector)) for vector in after["embedding"]] == [1, 2]
    assert after["user_events_total"].tolist() == [2, 2]
    assert np.asarray(after["item_embedding"][1]).tolist() == np.eye(DIMENSION)[0].tolist()


@pytest.mark.parametrize(
    ("users", "times"),
    [
        pytest.param(["ann", "ann"], [START_MS - 1, START_MS], id="too early"),
        pytest.param(["ann", "ann"], [START_MS, START_MS], id="twice"),
        pytest.param(["nobody"], [START_MS], id="unknown"),
    ],
)
def test_what_feast_s_dask_store_does_not_answer_is_an_error_and_duckdb_answers_it(
    repo: Repo, offline_store: str | None, users: list[str], times: list[int]
):
    features = repo()
    fill(features)
    if offline_store == "duckdb":
        assert len(ask(features, users, times)) == len(users)
        return
    with pytest.raises(DataError, match="dask") as caught:
        ask(features, users, times)
    assert "offline_store: {type: duckdb}" in str(caught.value.hint)


def test_int64_keys_under_another_name(repo: Repo):
    features = repo(user_join_key="member_no", user_id_type="int64")
    fill(features)
    assert ask(features, [7, 8], [START_MS, START_MS + 1])["events_used"].tolist() == [3, 3]


@pytest.mark.parametrize("folder", ["plain", "a*b [1]?"])
def test_plain_feast_materialises_the_example_views(repo: Repo, folder: str):
    features = repo(folder)
    fill(features)
    store = FeatureStore(repo_path=str(features.feature_repo))
    window = (datetime.fromtimestamp(t / 1000, UTC) for t in (START_MS - DAY_MS, START_MS + DAY_MS))
    store.materialize(*window, feature_views=["user_activity", "item_activity"])
    answer = store.get_online_features(["user_activity:user_events_7d"], [{"user_id": "ann"}]).to_dict()
    assert answer["user_events_7d"] == [2]


def test_readers_other_than_feast_find_the_same_rows(tmp_path: Path):
    features = make_repo(tmp_path, {"type": "sqlite"})
    for rows in (0, 3):
        if rows:
            fill(features)
        folder = source_folder(features, VIEW)
        assert duckdb.read_parquet(source_path(features, VIEW)).aggregate("count(*)").fetchall() == [(rows,)]
        for partitioning in ("hive", None):
            assert ds.dataset(folder, partitioning=partitioning).count_rows() == rows
            assert len(pq.read_table(folder, partitioning=partitioning)) == rows
        assert len(pd.read_parquet(folder)) == rows
        assert not [path for path in folder.iterdir() if not path.name.startswith("day=")]  # as Spark wants it


@pytest.mark.parametrize("unit", ["ns", "us", "ms", "s"])
def test_rows_of_any_unit_of_time_are_written_in_microseconds(tmp_path: Path, unit: str):
    features = make_repo(tmp_path, {"type": "sqlite"})
    at = pa.array([START_MS // 1000]).cast(pa.timestamp("s", "UTC")).cast(pa.timestamp(unit, "UTC"))
    counts = {name: [1] for name in ("user_events_total", "user_events_7d", "user_events_28d")}
    table = pa.table({"user_id": ["ann"], **counts, "user_positive_rate": pa.array([1], pa.float32())})
    table = table.append_column("event_timestamp", at).append_column("created_timestamp", at)
    OfflineLog(features).write_rows("user_activity", "a", table)
    for path in source_folder(features, "user_activity").rglob("*.parquet"):
        schema = pq.read_schema(path)
        assert {str(schema.field(name).type) for name in ("event_timestamp", "created_timestamp")} == {
            "timestamp[us, tz=UTC]"
        }
    assert ask(features, ["ann"], [START_MS])["user_events_total"].tolist() == [1]


def test_a_log_of_the_earlier_layout_stays_readable(repo: Repo):
    features = repo()
    fill(features)
    root = features.offline_folder
    for schema in root.glob(f"*/{SCHEMA_FILE}"):
        os.replace(schema, schema.parents[1] / "schema.parquet")
        schema.parent.rmdir()
    [counts] = root.glob("user_activity/day=*/a.parquet")
    (root / "user_activity" / "month=2023-11").mkdir()
    os.replace(counts, root / "user_activity" / "month=2023-11" / "activity.parquet")
    counts.parent.rmdir()
    (root / "user_embedding_gone" / "day=2023-11-14").mkdir(parents=True)  # of a release that was retired long ago
    pq.write_table(pq.read_table(root / VIEW / "schema.parquet"), root / "user_embedding_gone" / "schema.parquet")
    log = OfflineLog(features)
    for _ in range(2):
        log.prepare(["user_activity", "item_activity"])
        assert not [*root.glob("*/schema.parquet"), *root.glob("*/month=*")]
        assert {path.name for path in root.glob("user_activity/day=*")} == {"day=1970-01-01", "day=2023-11-01"}
        assert (root / "user_embedding_gone" / SCHEMA_FILE).exists()
    after = ask(features, ["ann", "ann"], [START_MS, START_MS + 2 * DAY_MS])
    assert after["user_events_total"].tolist() == [2, 2] and after["events_used"].tolist() == [3, 3]


def test_counts_of_the_earlier_layout_are_replaced_by_new_ones(tmp_path: Path):
    features = make_repo(tmp_path, {"type": "sqlite"})
    stale = features.offline_folder / "user_activity" / "month=1999-01" / "activity.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    write_existing_features(Lake(tmp_path / "lake", buckets=2), features)
    assert not [*features.offline_folder.rglob("activity.parquet")]


def test_a_folder_that_duckdb_cannot_name_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(UsageError, match="backslash") as caught:
        make_repo(tmp_path / "a\\b", {"type": "sqlite"})
    assert "offline_folder" in str(caught.value.hint)
    assert not [*tmp_path.rglob("*.parquet")]
