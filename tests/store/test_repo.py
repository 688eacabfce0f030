"""Applying the definitions from a program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Int64, String

from spoor.base.errors import UsageError
from spoor.feature_repo.definitions import build
from spoor.feature_repo.settings import FeatureSettings
from spoor.store import offline
from spoor.store.feast_store import registered_user_views
from spoor.store.online import open_online
from spoor.store.repo import apply
from tests.store.conftest import add_release, make_repo

VIEWS = {
    "user_history", "user_activity", "item_activity", "user_embedding_base_1", "item_embedding_base_1",
    "user_embedding_base_2", "item_embedding_base_2",
}  # fmt: skip


@pytest.fixture
def features(tmp_path: Path) -> FeatureSettings:
    return make_repo(tmp_path, {"type": "sqlite"})


EXAMPLES = {"user_activity", "item_activity"}


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
    store.apply([their_view(tmp_path, "plan", store.get_entity("user"))])
    (features.releases_folder / "base-2" / "release.json").unlink()
    assert apply(features).removed == ("item_embedding_base_2", "ranker_base_2", "user_embedding_base_2")
    assert names(features) == VIEWS - {"user_embedding_base_2", "item_embedding_base_2"} | {"plan"}


def test_two_projects_share_a_registry_by_their_prefixes(features, tmp_path):
    other = replace(features, prefix="b_", offline_folder=tmp_path / "offline-b")
    assert apply(other).removed == () and names(features) == VIEWS | {f"b_{view}" for view in VIEWS}
    (features.releases_folder / "base-2" / "release.json").unlink()
    assert set(apply(features).removed) == {"item_embedding_base_2", "ranker_base_2", "user_embedding_base_2"}
    online = open_online(features)
    assert registered_user_views(online.feast, features) == ["user_activity", "user_embedding_base_1", "user_history"]
    assert registered_user_views(online.feast, other) == sorted(f"b_{v}" for v in VIEWS if v.startswith("user_"))


def test_another_prefix_over_the_same_offline_log_is_refused_and_the_hint_leads_back(features):
    """Under it nothing that was written would be found."""
    before = names(features)
    with pytest.raises(UsageError, match=r"features\.prefix is `b_`.*was written with ``") as caught:
        apply(replace(features, prefix="b_"))
    assert 'features.prefix = ""' in caught.value.hint
    assert names(features) == before
    features.offline_folder.rename(features.offline_folder.with_name("earlier"))  # the hint's other way
    assert apply(replace(features, prefix="b_")).removed == ()


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


def their_view(folder: Path, name: str, entity: Entity) -> FeatureView:
    """Of a company: nothing says that it is Spoor's."""
    source = FileSource(name=f"{name}s", path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name=entity.join_key, dtype=String), Field(name="plan", dtype=Int64)]
    return FeatureView(name=name, entities=[entity], schema=schema, source=source)


def their_repo(folder: Path) -> tuple[FeatureSettings, FeatureStore, Entity]:
    """A company's repo, applied with its own user entity and nothing of Spoor's."""
    features = make_repo(folder, {"type": "sqlite"}, applied=False)
    (folder / "state").mkdir()
    store = FeatureStore(repo_path=str(features.feature_repo))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="who pays us")
    store.apply([user])
    return features, store, user


def test_what_runs_in_a_company_s_repo_adds_no_example_views(tmp_path):
    features, _, _ = their_repo(tmp_path)
    applied = apply(features, examples="keep")
    assert names(features) == VIEWS - EXAMPLES and not EXAMPLES & set(applied.registered)
    assert not [path for name in EXAMPLES for path in (features.offline_folder / name).rglob("*")]
    store = FeatureStore(repo_path=str(features.feature_repo))
    shown = [p.name for p in store.get_feature_service("ranker_base_1").feature_view_projections]
    assert shown == ["user_embedding_base_1", "item_embedding_base_1"]
    assert not [view for view in store.list_feature_views() if view.online]  # nothing for `feast materialize`


def test_example_views_that_are_registered_stay_where_they_are(features):
    applied = apply(features, examples="keep")
    assert set(applied.registered) >= EXAMPLES and applied.removed == () and names(features) == VIEWS


@pytest.mark.parametrize("examples", ["add", "keep"])
def test_a_company_s_view_called_user_activity_is_left_alone(tmp_path, examples):
    features, store, user = their_repo(tmp_path)
    store.apply([their_view(tmp_path, "user_activity", user)])
    applied = apply(features, examples=examples)
    assert "user_activity" not in (*applied.registered, *applied.removed)
    kept = FeatureStore(repo_path=str(features.feature_repo))
    assert [field.name for field in kept.get_feature_view("user_activity").features] == ["plan"]
    assert "user_activity" not in {p.name for p in kept.get_feature_service("ranker_base_1").feature_view_projections}


@pytest.mark.parametrize("kind", ["view", "service"])
def test_a_company_s_object_under_one_of_spoor_s_names_is_not_replaced(tmp_path, kind):
    features, store, user = their_repo(tmp_path)
    view = their_view(tmp_path, "user_history" if kind == "view" else "plan", user)
    store.apply([view, FeatureService(name="ranker_base_1" if kind == "service" else "theirs", features=[view])])
    with pytest.raises(UsageError, match=f"a {kind} `(user_history|ranker_base_1)`, not made by Spoor"):
        apply(features)
    kept = FeatureStore(repo_path=str(features.feature_repo))
    assert [view.name for view in kept.list_feature_views()] == [view.name]


def test_what_a_company_put_beside_spoor_s_vectors_stays_in_the_services(tmp_path):
    features, store, user = their_repo(tmp_path)
    plan = their_view(tmp_path, "plan", user)
    store.apply([plan, *build(features, user=user, beside=[plan])])
    add_release(features, "base-3")
    apply(features, examples="keep")
    store = FeatureStore(repo_path=str(features.feature_repo))
    for release in ("base_1", "base_3"):
        shown = [p.name for p in store.get_feature_service(f"ranker_{release}").feature_view_projections]
        assert shown == ["plan", f"user_embedding_{release}", f"item_embedding_{release}"]


@pytest.mark.parametrize(
    ("offline_store", "said"),
    [
        ({"type": "duckdb"}, ""),
        ({"type": "dask"}, "leaves out rows that repeat a key and time"),
        ({"type": "file"}, "leaves out rows that repeat a key and time"),
        (None, "leaves out rows that repeat a key and time"),
        ({"type": "remote", "host": "localhost"}, "was not tried with Spoor"),
    ],
)
def test_an_offline_store_that_does_not_answer_every_read_is_named_once(tmp_path, caplog, offline_store, said):
    features = make_repo(tmp_path, {"type": "sqlite"}, applied=False)
    file = features.feature_repo / "feature_store.yaml"
    content = yaml.safe_load(file.read_text()) | {"offline_store": offline_store}
    file.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
    offline._warn.cache_clear()
    for _ in range(2):
        apply(features)
    assert len(caplog.records) == bool(said) and said in caplog.text
    assert not said or "type: duckdb" in caplog.text
