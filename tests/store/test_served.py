"""The log of served features, through plain Feast with our provider: complete, bounded, and out of the way."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore

from spoor.activity.settings import HistorySettings
from spoor.base.errors import UsageError
from spoor.feature_repo.settings import FeatureSettings, load_feature_settings
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.promotion import promote
from spoor.store.served import ServedFeaturesProvider, ServedLog
from spoor.store.writer import GuardedWriter
from tests.store.conftest import make_repo
from tests.store.toys import ToyEncoder, as_of, events_of

ROWS = [{"user_id": user, "item_id": "i1"} for user in ("ann", "nobody")]


@pytest.fixture
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureSettings:
    """ann has a vector; the repo's readers log into the folder `served`."""
    monkeypatch.delenv("SPOOR_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spoor.toml").write_text('state_folder = "state"\n[features]\nserved_folder = "served"\n')
    features = make_repo(tmp_path, {"type": "sqlite"}, served_folder=tmp_path / "served")
    writer = GuardedWriter(open_online(features), [ToyEncoder("base-1")], history=HistorySettings())
    users, histories = events_of(("ann", "i1", 0))
    writer.update(users, histories, as_of_ms=as_of(users))
    promote(features, "base-1", now_ms=1)
    file = features.feature_repo / "feature_store.yaml"
    content = json.loads(file.read_text()) | {"provider": "spoor.store.served.ServedFeaturesProvider"}
    file.write_text(json.dumps(content))
    return features


@pytest.fixture
def reader(features: FeatureSettings) -> FeatureStore:
    return FeatureStore(repo_path=str(features.feature_repo))


def log_of(store: FeatureStore) -> ServedLog:
    provider = store._get_provider()
    assert isinstance(provider, ServedFeaturesProvider) and provider._served is not None
    return provider._served


def logged(features: FeatureSettings, service: str) -> pa.Table:
    assert features.served_folder is not None
    return pq.read_table(features.served_folder / service, partitioning=None)


def test_the_log_holds_what_was_answered_and_which_release_it_was(features, reader):
    service = reader.get_feature_service("ranker")
    answers = [reader.get_online_features(service, ROWS).to_dict() for _ in range(2)]
    log_of(reader).flush()
    found = logged(features, "ranker")
    assert found.num_rows == 4 and len(set(found["__request_id"].to_pylist())) == 2
    for name, values in answers[0].items():
        assert found[name].to_pylist()[:2] == values, name
    assert found.schema.field("embedding").type == pa.list_(pa.float32())
    assert found.schema.field("user_events_total").type == pa.int64(), "of a column of nulls, too"
    assert set(found["__model_version"].to_pylist()) == {"base-1"}
    assert found["embedding"].to_pylist()[1] is None and np.linalg.norm(found["embedding"][0].as_py()) > 0.99


def test_full_names_and_short_ones_lie_in_files_of_their_own(features, reader):
    service = reader.get_feature_service("ranker_base_1")
    reader.get_online_features(service, ROWS)
    reader.get_online_features(service, ROWS, full_feature_names=True)
    log_of(reader).flush()
    files = features.served_folder.glob("ranker_base_1/day=*/*.parquet")
    schemas = [pq.read_schema(path) for path in files if path.name != "schema.parquet"]
    assert sorted("user_embedding_base_1__embedding" in schema.names for schema in schemas) == [False, True]


def test_features_without_a_service_and_requests_outside_the_share_are_not_logged(features, reader, tmp_path):
    reader.get_online_features(["user_history:events"], [{"user_id": "ann"}])
    service = reader.get_feature_service("ranker")
    answer = reader._get_provider().online_store.get_online_features(
        reader.config, service, ROWS, reader.registry, reader.project
    )
    none = ServedLog(tmp_path / "none", share=0.0)
    for _ in range(50):
        none.add(service, answer)
    for log in (none, log_of(reader)):
        log.flush()
    assert not (tmp_path / "none").exists() and not features.served_folder.exists()


def test_without_the_setting_nothing_is_logged(features, tmp_path):
    (tmp_path / "spoor.toml").write_text("")
    store = FeatureStore(repo_path=str(features.feature_repo))
    assert store.get_online_features(store.get_feature_service("ranker"), ROWS).to_dict()["embedding"][0]
    assert store._get_provider()._served is None


def test_what_finds_no_room_is_left_out_and_counted(
    features, reader, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ServedLog, "_run", lambda log: None)  # its thread would make room in between, if it is quick
    service = reader.get_feature_service("ranker")
    answer = reader.get_online_features(service, ROWS)
    log = ServedLog(features.served_folder, flush_seconds=3600, most_rows=3)
    for _ in range(3):
        log.add(service, answer)
    log.flush()
    log.add(service, answer)  # there is room again
    log.flush()
    assert logged(features, "ranker").num_rows == 4
    assert "4 rows were left out" in caplog.text


def test_a_log_that_cannot_be_written_is_told_and_requests_go_on(features, reader, caplog: pytest.LogCaptureFixture):
    features.served_folder.write_text("a file in the way")
    service = reader.get_feature_service("ranker")
    for _ in range(2):
        with caplog.at_level(logging.ERROR):
            assert reader.get_online_features(service, ROWS).to_dict()["embedding"][0]
            log_of(reader).flush()
    assert caplog.text.count("2 rows of served features could not be logged") == 2


def test_a_forgotten_user_leaves_the_log_too(features, reader):
    reader.get_online_features(reader.get_feature_service("ranker"), ROWS)
    log_of(reader).flush()
    offline = open_offline(features)
    files = [path for path in offline.user_files() if features.served_folder in path.parents]
    assert len(files) == 1 and offline.forget(files[0], ["ann"]) == 1
    assert logged(features, "ranker")["user_id"].to_pylist() == ["nobody"]


def test_a_share_that_is_none_is_refused(tmp_path, features):
    (tmp_path / "spoor.toml").write_text("[features]\nserved_share = 1.5\n")
    with pytest.raises(UsageError, match=r"served_share is 1\.5"):
        load_feature_settings(features.feature_repo)
