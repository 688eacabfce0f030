"""Applying the definitions from a program."""

from __future__ import annotations

from pathlib import Path

import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Int64

from activity.errors import UsageError
from feature_repo.settings import FeatureSettings
from store.repo import apply
from tests.store.conftest import add_release, make_repo

VIEWS = {
    "user_history", "user_activity", "item_activity", "user_embedding_base_1", "item_embedding_base_1",
    "user_embedding_base_2", "item_embedding_base_2",
}  # fmt: skip


@pytest.fixture
def features(tmp_path: Path) -> FeatureSettings:
    return make_repo(tmp_path, {"type": "sqlite"})


def names(features: FeatureSettings) -> set[str]:
    store = FeatureStore(repo_path=str(features.feature_repo))
    return {view.name for view in store.list_feature_views()}


def test_apply_registers_every_view_and_service(features):
    assert names(features) == VIEWS
    again = apply(features)
    assert set(again.registered) == VIEWS | {"ranker_base_1", "ranker_base_2"} and again.removed == ()
    assert names(features) == VIEWS


def test_apply_removes_a_release_that_is_gone_and_leaves_a_company_s_own_views_alone(features, tmp_path):
    store = FeatureStore(repo_path=str(features.feature_repo))
    source = FileSource(name="plans", path=str(tmp_path / "plans.parquet"), timestamp_field="event_timestamp")
    user = store.get_entity("user")
    schema = [Field(name="plan", dtype=Int64)]
    store.apply([FeatureView(name="plan", entities=[user], schema=schema, source=source)])
    (features.releases_folder / "base-2" / "release.json").unlink()
    assert apply(features).removed == ("item_embedding_base_2", "ranker_base_2", "user_embedding_base_2")
    assert names(features) == VIEWS - {"user_embedding_base_2", "item_embedding_base_2"} | {"plan"}


def test_a_company_s_own_entity_of_the_same_shape_is_kept(tmp_path):
    features = make_repo(tmp_path, {"type": "sqlite"}, applied=False)
    (tmp_path / "state").mkdir()
    store = FeatureStore(repo_path=str(features.feature_repo))
    theirs = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="who pays us")
    store.apply([theirs])
    apply(features)
    kept = FeatureStore(repo_path=str(features.feature_repo)).get_entity("user")
    assert kept.description == "who pays us"


def test_an_entity_of_another_shape_under_the_same_name_is_refused(tmp_path):
    features = make_repo(tmp_path, {"type": "sqlite"}, applied=False)
    (tmp_path / "state").mkdir()
    theirs = Entity(name="user", join_keys=["uid"], value_type=ValueType.INT64)
    FeatureStore(repo_path=str(features.feature_repo)).apply([theirs])
    with pytest.raises(UsageError, match="join key uid of type INT64") as caught:
        apply(features)
    assert "user_join_key" in caught.value.hint
    assert names(features) == set()


def test_a_release_that_arrives_later_gets_its_views(features):
    add_release(features, "base-3")
    apply(features)
    assert {"user_embedding_base_3", "item_embedding_base_3"} <= names(features)
