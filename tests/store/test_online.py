"""The online store against genuine SQLite and Redis: what readers see, what is refused, what stays untouched."""

from __future__ import annotations

import dataclasses
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.types import Int64

from spoor.activity.settings import HistorySettings
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.store.offline import OfflineLog
from spoor.store.online import OnlineStore, open_online
from spoor.store.repo import apply
from spoor.store.rows import EmbeddingRow, UserWrite, embedding_log_table
from spoor.store.writer import GuardedWriter
from tests.conftest import wait_until
from tests.permissions import bound_by_permissions
from tests.store.conftest import add_release, make_repo, open_unguarded
from tests.store.toys import DIMENSION, START_MS, ToyEncoder, as_of, events_of

RELEASES = ["base-1", "base-2"]
FEATURES = ["embedding", "revision", "events_used", "event_time_ms", "created_ms", "computed_at_ms", "model_version"]


def unit(*values: float) -> np.ndarray:
    vector = np.zeros(DIMENSION, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def embedding(user: str, revision: int, *, release: str = "base-1", **changes) -> EmbeddingRow:
    facts = {
        "user_id": user,
        "embedding": unit(1, 2, 3),
        "revision": revision,
        "events_used": 3,
        "event_time_ms": START_MS,
        "created_ms": START_MS + 1,
        "computed_at_ms": START_MS + 2,
        "model_version": release,
    }
    return EmbeddingRow(**(facts | changes))


def write_of(user: str, expected: int, *, revision: int | None = None, history: bytes = b"packed", **changes):
    revision = expected + 1 if revision is None else revision
    rows = [embedding(user, revision, **changes)]
    return UserWrite(user, expected, revision, history, 3, START_MS, START_MS + 1, rows)


def update(online: OnlineStore, *events: tuple[str, str, int]):
    users, histories = events_of(*events)
    encoders = [ToyEncoder("base-1"), ToyEncoder("base-2")]
    writer = GuardedWriter(online, encoders, history=HistorySettings())
    return writer.update(users, histories, as_of_ms=as_of(users))


# What is written and refused


def test_a_write_names_the_revision_it_was_computed_from(online):
    assert online.write([write_of("ann", 0), write_of("bob", 3)]).tolist() == [True, False]
    assert online.write([write_of("ann", 0), write_of("ann", 1)]).tolist() == [False, True]
    assert [user.revision for user in online.read(["ann", "bob"], [])] == [2, 0]


def test_a_refused_write_leaves_history_and_embedding_as_they_were(online):
    online.write([write_of("ann", 0)])
    refused = write_of("ann", 5, history=b"other", embedding=unit(0, 1))
    assert online.write([refused]).tolist() == [False]
    assert online.read(["ann"], ["base-1"])[0].history == b"packed"
    row = online.read_embeddings("base-1", ["ann"])[0]
    assert row is not None and row.revision == 1 and (row.embedding == unit(1, 2, 3)).all()


def test_an_embedding_alone_is_written_under_the_same_condition(online):
    online.write([write_of("ann", 0)])
    sweep = write_of("ann", 1, revision=1, history=b"ignored", release="base-2")
    assert online.write([sweep]).tolist() == [True]
    user = online.read(["ann"], ["base-1", "base-2"])[0]
    assert (user.history, user.revision) == (b"packed", 1)
    assert user.embedding_revisions == {"base-1": 1, "base-2": 1}
    late = write_of("ann", 2, revision=2, release="base-2")
    assert online.write([late]).tolist() == [False]


@pytest.mark.parametrize("revision", [2**53 + 1, 2**62])
def test_revisions_are_compared_exactly(online, revision):
    online.write([write_of("ann", 0, revision=revision)])
    assert online.write([write_of("ann", revision - 1, revision=revision + 1)]).tolist() == [False]
    assert online.write([write_of("ann", revision)]).tolist() == [True]


def test_more_users_than_one_transaction_takes(online):
    users = [f"u{index}" for index in range(2001)]
    assert online.write([write_of(user, 0) for user in users]).all()
    assert [user.revision for user in online.read(users, ["base-1"])] == [1] * 2001
    assert sorted(online.user_ids()) == sorted(users)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"embedding": np.ones(DIMENSION + 1, np.float32) / 3}, "shape"),
        ({"embedding": np.full(DIMENSION, np.nan, np.float32)}, "norm nan"),
        ({"embedding": np.full(DIMENSION, np.inf, np.float32)}, "norm inf"),
        ({"embedding": np.ones(DIMENSION, np.float32)}, "norm 2.828"),
        ({"embedding": np.zeros(DIMENSION, np.float32)}, "norm 0"),
    ],
)
def test_bad_vectors_are_refused_before_anything_is_written(online, bad, message):
    with pytest.raises(DataError, match=message) as caught:
        online.write([write_of("ann", 0), write_of("bob", 0, **bad)])
    assert caught.value.hint
    assert [user.revision for user in online.read(["ann", "bob"], [])] == [0, 0]


def test_zeros_are_a_vector_where_no_event_was_used(online):
    nothing = write_of("ann", 0, embedding=np.zeros(DIMENSION, np.float32), events_used=0)
    assert online.write([nothing]).all()


def test_a_failure_half_way_leaves_nothing_written(tmp_path):
    features = make_repo(tmp_path, {"type": "sqlite"})
    online = open_online(features)
    both = dataclasses.replace(write_of("ann", 0), embeddings=[embedding("ann", 1, release=r) for r in RELEASES])
    online.read(["ann"], RELEASES)
    with sqlite3.connect(tmp_path / "state" / "online.db") as other:
        other.execute("DROP TABLE spoor_user_embedding_base_2")
    with pytest.raises(InfrastructureError, match="no such table"):
        online.write([write_of("bob", 0), both])
    assert [user.revision for user in online.read(["ann", "bob"], ["base-1"])] == [0, 0]
    assert online.read_embeddings("base-1", ["ann", "bob"]) == [None, None]


def test_user_ids_of_any_text(online):
    users = ["", "ä/ø?*[", "spoor", "a" * 128, "*", "1"]
    assert online.write([write_of(user, 0) for user in users]).all()
    assert sorted(online.user_ids()) == sorted(users)
    assert all(user.revision == 1 for user in online.read(users, []))


def test_the_layout_is_byte_for_byte_what_feast_itself_writes(online, features, kind, tmp_path, request):
    open_unguarded(features).write([write_of("ann", 0)])  # Feast's own class lays the values out
    online.write([write_of("bob", 0)])
    if kind == "redis":
        client = request.getfixturevalue("redis_server").client()
        ann, bob = (client.hgetall(next(client.scan_iter(f"*{user}*"))) for user in ("ann", "bob"))
        assert ann == bob and len(ann) == 5 + 7 + 2
        return
    with sqlite3.connect(tmp_path / "state" / "online.db") as database:
        for table in ("spoor_user_history", "spoor_user_embedding_base_1"):
            rows = {
                user: database.execute(
                    "SELECT feature_name, value, value_text, vector_value, event_ts, created_ts "
                    f"FROM {table} WHERE instr(entity_key, ?) ORDER BY feature_name",
                    (user,),
                ).fetchall()
                for user in (b"ann", b"bob")
            }
            assert rows[b"ann"] == rows[b"bob"] and len(rows[b"ann"]) in (5, 7)


# What readers see


def test_plain_feast_reads_what_was_written(online, features):
    result = update(online, ("ann", "i1", 0), ("ann", "i2", 7))
    online.write_items("base-1", ["i1"], np.stack([unit(3, 4)]), START_MS)
    plain = FeatureStore(repo_path=str(features.feature_repo))
    assert type(plain._get_provider().online_store).__module__.startswith("feast.")
    answer = plain.get_online_features(
        [f"user_embedding_base_1:{name}" for name in FEATURES] + ["item_embedding_base_1:item_embedding"],
        [{"user_id": "ann", "item_id": "i1"}],
    ).to_dict()
    row = result.rows["base-1"][0]
    assert np.array(answer["embedding"][0], np.float32).tobytes() == row.embedding.tobytes()
    for name in FEATURES[1:]:
        assert answer[name] == [getattr(row, name)]
    np.testing.assert_array_equal(np.array(answer["item_embedding"][0], np.float32), unit(3, 4))
    history = plain.get_online_features(["user_history:history", "user_history:events"], [{"user_id": "ann"}]).to_dict()
    assert history["history"] == [online.read(["ann"], [])[0].history] and history["events"] == [2]


def test_a_ranker_reads_its_service_and_a_missing_user_is_nulls(online, features):
    update(online, ("ann", "i1", 0))
    plain = FeatureStore(repo_path=str(features.feature_repo))
    rows = [{"user_id": "ann", "item_id": "i1"}, {"user_id": "nobody", "item_id": "i1"}]
    answer = plain.get_online_features(plain.get_feature_service("ranker_base_1"), rows).to_dict()
    assert len(answer["embedding"][0]) == DIMENSION and answer["embedding"][1] is None
    assert answer["user_events_total"] == [None, None]


def test_event_time_keeps_its_milliseconds(online, features):
    result = update(online, ("ann", "i1", 456))
    plain = FeatureStore(repo_path=str(features.feature_repo))
    names = ["user_embedding_base_1:event_time_ms", "user_history:as_of_ms"]
    answer = plain.get_online_features(names, [{"user_id": "ann"}]).to_dict()
    assert answer["event_time_ms"] == [START_MS + 456]
    assert result.rows["base-1"][0].event_time_ms == START_MS + 456


def test_an_int64_join_key_under_a_company_s_own_names(tmp_path, online_store):
    features = make_repo(tmp_path, online_store, user_entity="member", user_join_key="member_no", user_id_type="int64")
    online = open_online(features)
    online.check()
    update(online, ("42", "i1", 0), ("-7", "i2", 0))
    plain = FeatureStore(repo_path=str(features.feature_repo))
    answer = plain.get_online_features(["user_history:revision"], [{"member_no": 42}, {"member_no": -7}]).to_dict()
    assert answer["revision"] == [1, 1] and sorted(online.user_ids()) == ["-7", "42"]
    for wrong in ("ann", "007", "9223372036854775808"):
        with pytest.raises(DataError, match="INT64"):
            online.read([wrong], [])


# What stays untouched


def test_materialize_incremental_by_someone_else_changes_no_guarded_view(online, features, tmp_path):
    now = datetime.now(UTC).replace(microsecond=0)
    update(online, ("ann", "i1", 0))
    before = online.read(["ann"], ["base-1"])[0], online.read_embeddings("base-1", ["ann"])[0]
    _plant_offline_rows(features, now)
    FeatureStore(repo_path=str(features.feature_repo)).materialize_incremental(end_date=now + timedelta(hours=1))
    plain = FeatureStore(repo_path=str(features.feature_repo))
    answer = plain.get_online_features(["user_activity:user_events_total"], [{"user_id": "ann"}]).to_dict()
    assert answer["user_events_total"] == [11]  # it did run, on the view that is meant for it
    after = online.read(["ann"], ["base-1"])[0], online.read_embeddings("base-1", ["ann"])[0]
    assert after[0] == before[0]
    assert after[1] is not None and before[1] is not None and after[1].revision == before[1].revision
    update(online, ("ann", "i2", 1))
    assert online.read(["ann"], ["base-1"])[0].revision == 2


def test_materialize_by_name_refuses_a_guarded_view(features):
    plain = FeatureStore(repo_path=str(features.feature_repo))
    now = datetime.now(UTC)
    with pytest.raises(ValueError, match="user_embedding_base_1"):
        plain.materialize(now - timedelta(days=1), now, feature_views=["user_embedding_base_1"])


def test_other_views_of_the_same_user_are_left_alone(online, features, tmp_path):
    store = _with_company_view(features, tmp_path)
    update(online, ("ann", "i1", 0))
    assert _company_value(store, "ann") == 17
    online.remove_release("base-1")
    assert _company_value(store, "ann") == 17


def test_a_removed_release_leaves_nothing_behind(online, features, kind, request):
    update(online, ("ann", "i1", 0))
    online.write_items("base-1", ["i1"], np.stack([unit(3, 4)]), START_MS)
    online.remove_release("base-1")
    assert online.read_embeddings("base-1", ["ann"]) == [None]
    assert online.read_embeddings("base-2", ["ann"]) != [None]
    assert online.read(["ann"], [])[0].revision == 1
    if kind == "redis":
        keys = request.getfixturevalue("redis_server").client()
        assert len(list(keys.scan_iter())) == 1  # the item's hash went with its last field
        (user,) = keys.scan_iter()
        assert {f for f in keys.hkeys(user) if f.startswith(b"_ts:")} == {
            b"_ts:user_history",
            b"_ts:user_embedding_base_2",
        }
        assert len(keys.hkeys(user)) == 2 + 5 + 7


def test_a_retired_release_can_be_removed_after_its_views_are_gone(online, features):
    update(online, ("ann", "i1", 0))
    add_release(features, "base-1", retired=True)
    assert apply(features).removed == ("item_embedding_base_1", "ranker_base_1", "user_embedding_base_1")
    fresh = open_online(features)
    fresh.remove_release("base-1")
    with pytest.raises(UsageError, match="does not know the release `base-1`; it knows: base-2"):
        fresh.read(["ann"], ["base-1"])
    assert fresh.read(["ann"], ["base-2"])[0].embedding_revisions == {"base-2": 1}


# What is said when something is missing


def test_an_unknown_release_names_the_known_ones(online):
    for call in (
        lambda: online.read(["ann"], ["base-9"]),
        lambda: online.read_embeddings("base-9", ["ann"]),
        lambda: online.write_items("base-9", ["i"], np.stack([unit(1)]), 0),
        lambda: online.check(["base-9"]),
    ):
        with pytest.raises(UsageError, match="`base-9`; it knows: base-1, base-2") as caught:
            call()
        assert "apply" in caught.value.hint


def test_a_repo_that_is_not_applied_says_how_to_apply_it(tmp_path, online_store):
    features = make_repo(tmp_path, online_store, applied=False)
    with pytest.raises(UsageError, match="not applied") as caught:
        open_online(features)
    assert caught.value.hint == f"run `feast -c {features.feature_repo} apply`"
    assert not (tmp_path / "state").exists()  # looking made nothing


def test_a_folder_without_feature_store_yaml_is_named(tmp_path, online_store):
    features = make_repo(tmp_path, online_store)
    (features.feature_repo / "feature_store.yaml").unlink()
    with pytest.raises(UsageError, match="not a Feast repo"):
        open_online(features)


def test_check_passes_on_a_healthy_store(online):
    online.check()
    online.check(["base-1"])


def test_check_finds_a_release_of_another_dimension_than_its_view(online, features):
    add_release(features, "base-1", dimension=16)
    with pytest.raises(UsageError, match="has dimension 16, its view in Feast 8") as caught:
        online.check()
    assert "apply" in caught.value.hint


def test_check_finds_another_join_key_than_the_settings(online, features):
    for wrong in ({"user_join_key": "uid"}, {"user_id_type": "int64"}):
        with pytest.raises(UsageError, match="has keys"):
            open_online(dataclasses.replace(features, **wrong)).check()


def test_applying_after_a_release_arrives_is_seen_by_an_open_store(online, features):
    add_release(features, "base-3")
    apply(features)
    assert online.dimension("base-3") == DIMENSION


def test_a_redis_that_is_down_is_an_infrastructure_error_with_a_hint(tmp_path, start_redis):
    server = start_redis()
    features = make_repo(tmp_path, {"type": "redis", "connection_string": server.connection_string})
    online = open_online(features)
    server.process.terminate()
    server.process.wait(timeout=10)
    with pytest.raises(InfrastructureError, match="redis") as caught:
        online.check()  # redis-py tries for some seconds
    assert "start Redis" in caught.value.hint


def test_a_redis_that_forgot_the_script_gets_it_again(tmp_path, redis_server):
    redis_server.client().flushall()
    features = make_repo(tmp_path, {"type": "redis", "connection_string": redis_server.connection_string})
    online = open_online(features)
    assert online.write([write_of("ann", 0)]).all()
    redis_server.client().script_flush()
    assert online.write([write_of("ann", 1), write_of("bob", 0), write_of("cy", 4)]).tolist() == [True, True, False]


def test_redis_cluster(tmp_path, start_redis):
    server = start_redis("--cluster-enabled", "yes")
    server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    _wait_for_cluster(server)
    settings = {"type": "redis", "redis_type": "redis_cluster", "connection_string": server.connection_string}
    online = open_online(make_repo(tmp_path, settings))
    assert update(online, ("ann", "i1", 0), ("bob", "i2", 0)).changed.all()
    assert update(online, ("ann", "i3", 1)).revisions.tolist() == [2]
    assert online.write([write_of("ann", 1), write_of("bob", 1)]).tolist() == [False, True]
    assert sorted(online.user_ids()) == ["ann", "bob"]
    online.remove_release("base-1")
    assert online.read_embeddings("base-1", ["ann", "bob"]) == [None, None]


def test_a_store_without_guard_merges_too_and_says_once_that_it_is_not_atomic(features, caplog):
    online = open_unguarded(features)
    update(online, ("ann", "i1", 0))
    update(online, ("ann", "i2", 1))
    assert online.read(["ann"], ["base-1"])[0].revision == 2
    assert online.write([write_of("ann", 1), write_of("bob", 0)]).tolist() == [False, True]
    said = [record.message for record in caplog.records if "no guarded writes" in record.message]
    assert len(said) == 1 and "lose an update" in said[0]
    with pytest.raises(UsageError, match="cannot list its users"):
        list(online.user_ids())


def make_read_only(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_sqlite_file_in_a_read_only_folder_is_an_infrastructure_error(tmp_path):
    features = make_repo(tmp_path, {"type": "sqlite"})
    make_read_only(tmp_path)
    with bound_by_permissions(), pytest.raises(InfrastructureError, match=r"sqlite.*readonly") as caught:
        open_online(features).write([write_of("ann", 0)])
    assert "can be written" in caught.value.hint


def test_applying_into_a_read_only_folder_is_an_infrastructure_error(tmp_path):
    features = make_repo(tmp_path, {"type": "sqlite"}, applied=False)
    (tmp_path / "state").mkdir(exist_ok=True)
    make_read_only(tmp_path)
    with bound_by_permissions(), pytest.raises(InfrastructureError) as caught:
        apply(features)
    assert "permissions" in caught.value.hint


def _plant_offline_rows(features, now: datetime) -> None:
    """Newer rows in the offline log: of the company's view, and poison for the guarded ones."""

    log = OfflineLog(features)
    poison = embedding_log_table([embedding("ann", 99, event_time_ms=int(now.timestamp() * 1000))])
    log.write_rows("user_embedding_base_1", "poison", poison)
    times = pa.array([now], pa.timestamp("us", "UTC"))
    log.write_rows(
        "user_activity",
        "planted",
        pa.table(
            {
                "user_id": ["ann"],
                "user_events_total": pa.array([11]),
                "user_events_7d": pa.array([1]),
                "user_events_28d": pa.array([1]),
                "user_positive_rate": pa.array([0.5], pa.float32()),
                "event_timestamp": times,
                "created_timestamp": times,
            }
        ),
    )


def _with_company_view(features, folder: Path) -> FeatureStore:
    """A view that a company has beside Spoor's, on the same entity, with a value for ann."""
    store = FeatureStore(repo_path=str(features.feature_repo))
    source = FileSource(
        name="plans", path=str(folder / "plans.parquet"), timestamp_field="event_timestamp", file_format=ParquetFormat()
    )
    view = FeatureView(
        name="plan", entities=[store.get_entity("user")], schema=[Field(name="plan", dtype=Int64)], source=source
    )
    store.apply([view])
    rows = pd.DataFrame({"user_id": ["ann"], "plan": [17], "event_timestamp": [datetime.now(UTC)]})
    store.write_to_online_store("plan", rows)
    return store


def _company_value(store: FeatureStore, user: str) -> int:
    return store.get_online_features(["plan:plan"], [{"user_id": user}]).to_dict()["plan"][0]


def _wait_for_cluster(server) -> None:
    wait_until(lambda: "cluster_state:ok" in str(server.client().execute_command("CLUSTER", "INFO")), "a cluster")
