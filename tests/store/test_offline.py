"""The offline log, and point-in-time reads through Feast against a brute-force join."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore

from spoor.base.errors import DataError, InfrastructureError
from spoor.feature_repo.definitions import source_folder
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.offline import SCHEMA_FILE, OfflineLog, activity_log_schema
from spoor.store.reads import historical_features
from spoor.store.repo import apply
from spoor.store.rows import EmbeddingRow, UserWrite, times
from tests.store.conftest import add_release, make_repo
from tests.store.toys import DIMENSION

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
VIEW = "user_embedding_base_1"


@pytest.fixture
def features(tmp_path: Path) -> FeatureSettings:
    return make_repo(tmp_path, {"type": "sqlite"})


@pytest.fixture
def log(features: FeatureSettings) -> OfflineLog:
    return OfflineLog(features)


def row(user: str, event_ms: int, created_ms: int, number: int) -> EmbeddingRow:
    """`number` tells rows apart: it is the revision and the direction of the vector."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[number % DIMENSION] = 1
    return EmbeddingRow(user, vector, number, 3, event_ms, created_ms, created_ms + 5, "base-1")


def ask(features: FeatureSettings, rows: list[tuple[str, int]]) -> pd.DataFrame:
    """The service's features for (user, time in ms), in the given order."""
    entities = pd.DataFrame(
        {
            "user_id": [user for user, _ in rows],
            "item_id": ["i1"] * len(rows),
            "event_timestamp": [pd.Timestamp(time, unit="ms", tz="UTC") for _, time in rows],
            "row": range(len(rows)),
        }
    )
    return historical_features(features, entities, "base-1").sort_values("row", ignore_index=True)


def test_rows_lie_by_day_of_created_and_the_manifest_names_the_files(features, log):
    rows = [row("ann", START_MS, START_MS, 1), row("bob", START_MS, START_MS + DAY_MS, 2)]
    log.write_embeddings("base-1", "slice-1", rows)
    folder = source_folder(features, VIEW)
    days = ["day=2023-11-14", "day=2023-11-15"]
    assert sorted(p.name for p in folder.iterdir()) == ["day=1970-01-01", *days]
    assert log.manifest(VIEW).records() == {"slice-1": {"files": [f"{day}/slice-1.parquet" for day in days], "rows": 2}}
    assert log.has(VIEW, "slice-1") and not log.has(VIEW, "slice-2")
    assert log.read(VIEW)["user_id"].to_pylist() == ["ann", "bob"]


def test_repeating_a_work_item_replaces_its_rows(features, log):
    log.write_embeddings("base-1", "slice-1", [row("ann", START_MS, START_MS, 1), row("bob", 0, 0, 2)])
    log.write_embeddings("base-1", "slice-1", [row("cy", START_MS, START_MS, 3)])
    assert log.read(VIEW)["user_id"].to_pylist() == ["cy"]
    files = [p.relative_to(source_folder(features, VIEW)) for p in source_folder(features, VIEW).rglob("slice-*")]
    assert files == [Path("day=2023-11-14/slice-1.parquet")]


def test_repeating_an_interrupted_work_item_leaves_nothing_of_the_first_attempt_for_feast_to_read(
    features, log, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr("spoor.store.offline.Manifest.add", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            log.write_embeddings("base-1", "slice-1", [row("ann", START_MS, START_MS, 1)])
    log.write_embeddings("base-1", "slice-10", [row("bob", START_MS, START_MS, 2)])
    log.write_embeddings("base-1", "slice-1", [row("ann", START_MS, START_MS + 3 * DAY_MS, 3)])
    found = ask(features, [("ann", START_MS + DAY_MS), ("ann", START_MS + 4 * DAY_MS), ("bob", START_MS + DAY_MS)])
    assert found["events_used"].notna().tolist() == [False, True, True]


def test_an_empty_work_item_is_done_and_has_no_rows(log):
    log.write_embeddings("base-1", "nobody", [])
    assert log.has(VIEW, "nobody") and len(log.read(VIEW)) == 0


def test_histories_and_items_are_logged_for_early_fusion_and_candidates(features, log):
    write = UserWrite("ann", 0, 4, b"\x00packed\xff", 2, START_MS, START_MS + 9, [])
    log.write_histories("slice-1", [write])
    log.write_items("base-1", "items", ["i1", "i2"], np.eye(2, DIMENSION, dtype=np.float32), START_MS)
    assert log.read("user_history").drop_columns(["event_timestamp", "created_timestamp"]).to_pylist() == [
        {
            "user_id": "ann",
            "history": b"\x00packed\xff",
            "revision": 4,
            "events": 2,
            "event_time_ms": START_MS,
            "as_of_ms": START_MS + 9,
        }
    ]
    assert log.read("item_embedding_base_1")["item_embedding"].to_pylist()[1] == [0, 1, 0, 0, 0, 0, 0, 0]
    answer = ask(features, [("ann", START_MS + 10)])
    assert answer["item_embedding"][0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_feast_reads_a_view_before_its_first_row(features):
    answer = ask(features, [("ann", START_MS)])
    assert len(answer) == 1 and pd.isna(answer["events_used"][0]) and answer["embedding"][0] is None


def test_neither_a_later_row_nor_one_of_a_later_trained_model_is_seen(features, log):
    known = row("ann", START_MS, START_MS, 1)
    from_later_events = row("ann", START_MS + 60_000, START_MS + 60_000, 2)
    backfilled_later = row("ann", START_MS + 10, START_MS + DAY_MS, 3)  # old events, a model trained a day later
    log.write_embeddings("base-1", "slice-1", [backfilled_later, from_later_events, known])
    answer = ask(
        features,
        [
            ("ann", START_MS - 1),  # before anything was known
            ("ann", START_MS),
            ("ann", START_MS + 59_999),
            ("ann", START_MS + 60_000),
            ("ann", START_MS + 2 * DAY_MS),
        ],
    )
    assert [None if v is None else int(v.argmax()) for v in answer["embedding"]] == [None, 1, 1, 2, 2]


def test_point_in_time_reads_equal_a_brute_force_join(features, log):
    rng = np.random.default_rng(3)
    rows = []
    for number in range(600):
        event = START_MS + int(rng.integers(0, 40)) * 1000 + int(rng.integers(0, 3))
        late = int(rng.choice([0, 0, 1, 5000, DAY_MS]))
        rows.append(row(f"u{rng.integers(12)}", event, event + late, number))
    unique = {(r.user_id, r.event_time_ms, r.created_ms): r for r in rows}  # equal times have no order in Feast
    rows = list(unique.values())
    for part in range(4):
        log.write_embeddings("base-1", f"slice-{part}", rows[part::4])
    asked = [(f"u{rng.integers(14)}", START_MS + int(rng.integers(-5, 45_000))) for _ in range(500)]
    asked += asked[:50]  # the same user and time twice
    answer = ask(features, asked)
    assert len(answer) == len(asked)

    logged = pa.table(
        {
            "user_id": [r.user_id for r in rows],
            "event": [r.event_time_ms for r in rows],
            "created": [r.created_ms for r in rows],
            "number": [r.revision for r in rows],
        }
    )
    labels = pa.table({"user_id": [u for u, _ in asked], "label_time": [t for _, t in asked], "row": range(len(asked))})
    database = duckdb.connect().register("logged", logged).register("labels", labels)
    expected = database.sql(
        """
        SELECT row, event, number FROM labels LEFT JOIN (
            SELECT row, event, number,
                   row_number() OVER (PARTITION BY row ORDER BY event DESC, created DESC) AS place
            FROM labels JOIN logged USING (user_id) WHERE event <= label_time AND created <= label_time
        ) USING (row) WHERE place IS NULL OR place = 1 ORDER BY row
        """
    ).fetchall()
    assert 100 < sum(number is not None for _, _, number in expected) < len(asked)
    for (_, event, number), (_, got) in zip(expected, answer.iterrows(), strict=True):
        if number is None:
            assert got["embedding"] is None
        else:
            assert got["event_time_ms"] == event
            assert got["embedding"].argmax() == number % DIMENSION


def test_an_int64_join_key_under_another_name(tmp_path):
    features = make_repo(
        tmp_path, {"type": "sqlite"}, user_join_key="member_no", user_id_type="int64", item_id_type="int64"
    )
    log = OfflineLog(features)
    log.write_embeddings("base-1", "slice-1", [row("42", START_MS, START_MS, 1)])
    assert log.read(VIEW).schema.field("member_no").type == pa.int64()
    store = FeatureStore(repo_path=str(features.feature_repo))
    entities = pd.DataFrame({"member_no": [42], "event_timestamp": [datetime.fromtimestamp(START_MS / 1000, UTC)]})
    answer = store.get_historical_features(
        entities, features=[f"{VIEW}:events_used"], filter_by_created_timestamp=True
    ).to_df()
    assert answer["events_used"].tolist() == [3]
    for wrong in ("ann", "007"):
        with pytest.raises(DataError, match="user_id"):
            log.write_embeddings("base-1", "slice-2", [row(wrong, START_MS, START_MS, 1)])
    assert not log.has(VIEW, "slice-2")


def test_activity_rows_of_a_company_have_their_schema(features, log):
    answer = ask(features, [("ann", START_MS)])
    assert {"user_events_total", "item_positive_rate"} <= set(answer.columns)
    schema = pq.read_schema(source_folder(features, "item_activity") / SCHEMA_FILE)
    assert schema.names == [
        "item_id",
        "item_events_total",
        "item_users_total",
        "item_events_7d",
        "item_events_28d",
        "item_positive_rate",
        "event_timestamp",
        "created_timestamp",
    ]


def remove_view(log: OfflineLog, view: str) -> None:
    """As an operator removes a retired release's log: manifest first."""
    shutil.rmtree(log.folder / "_manifest" / view)
    shutil.rmtree(source_folder(log.features, view))


def test_a_removed_view_leaves_no_file(features, log):
    log.write_embeddings("base-1", "slice-1", [row("ann", START_MS, START_MS, 1)])
    remove_view(log, VIEW)
    assert not source_folder(features, VIEW).exists() and not log.has(VIEW, "slice-1")
    add_release(features, "base-1", retired=True)
    apply(features)
    assert not source_folder(features, VIEW).exists()


def test_a_folder_that_cannot_be_made_is_an_infrastructure_error(features, log):
    (features.offline_folder / VIEW / "day=2023-11-14").write_text("in the way")
    with pytest.raises(InfrastructureError, match="cannot write"):
        log.write_embeddings("base-1", "slice-1", [row("ann", START_MS, START_MS, 1)])
    assert not log.has(VIEW, "slice-1")


def test_times_are_exact_to_the_millisecond():
    assert times([1_700_000_000_123, -1]).cast(pa.int64()).to_pylist() == [1_700_000_000_123_000, -1000]


def test_a_forgotten_user_leaves_the_files_of_every_view_and_the_others_stay(
    features: FeatureSettings, log: OfflineLog
):
    rows = [row("ann", START_MS, START_MS, 1), row("bob", START_MS, START_MS + DAY_MS, 2)]
    log.write_embeddings("base-1", "item-a", rows)
    log.write_embeddings("base-1", "item-b", [row("ann", START_MS, START_MS, 3)])
    log.write_histories("item-a", [UserWrite("ann", 0, 1, b"packed", 1, START_MS, START_MS, [])])
    log.write_items("base-1", "items", ["ann"], np.eye(DIMENSION, dtype=np.float32)[:1], START_MS)
    activity = source_folder(features, "user_activity") / "day=2023-11-01" / "activity.parquet"
    activity.parent.mkdir(parents=True)
    at = datetime(2023, 11, 1, tzinfo=UTC)
    counted = [{"user_id": user, "event_timestamp": at, "created_timestamp": at} for user in ("ann", "bob", "ann")]
    pq.write_table(pa.Table.from_pylist(counted, schema=activity_log_schema("user_activity")), activity)
    files = log.user_files()
    assert len(files) == 5
    assert sum(log.forget(path, ["ann", "cy"], dry_run=True) for path in files) == 5
    assert len(log.read(VIEW)) == 3
    assert sum(log.forget(path, ["ann", "cy"]) for path in files) == 5
    assert sum(log.forget(path, ["ann", "cy"]) for path in files) == 0
    log.recount()
    assert log.read(VIEW)["user_id"].to_pylist() == ["bob"]
    assert [log.manifest(VIEW).get(item)["rows"] for item in ("item-a", "item-b")] == [1, 0]
    assert len(log.read("user_history")) == 0
    assert pq.read_table(activity, partitioning=None)["user_id"].to_pylist() == ["bob"]
    assert len(log.read("item_embedding_base_1")) == 1  # an item of the same name
    assert ask(features, [("bob", START_MS + 2 * DAY_MS)])["events_used"].tolist() == [3]


def test_a_damaged_file_of_the_log_is_named(log: OfflineLog):
    log.write_embeddings("base-1", "item-a", [row("ann", START_MS, START_MS, 1)])
    [path] = log.user_files()
    path.write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot read") as caught:
        log.forget(path, ["ann"])
    assert str(path) in caught.value.message and caught.value.hint
