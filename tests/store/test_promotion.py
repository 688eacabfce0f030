"""Which release a ranker is served by `ranker`, read with plain Feast, and what a release must have to be served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from feast import FeatureService, FeatureStore
from feast.errors import FeatureViewNotFoundException

from spoor.activity.history import Histories
from spoor.activity.settings import HistorySettings
from spoor.base.errors import DataError, UsageError
from spoor.feature_repo.releases import PROMOTED_FILE, Promotion, promotion
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.feast_store import open_feature_store
from spoor.store.online import OnlineStore, open_online
from spoor.store.promotion import Coverage, cache_seconds, coverage, promote
from spoor.store.repo import apply
from spoor.store.writer import GuardedWriter
from tests.conftest import wait_until
from tests.store.conftest import add_release, make_repo
from tests.store.toys import DIMENSION, ToyEncoder, as_of, events_of

ITEMS = ["i1", "i2", "i3"]
BEFORE, AFTER = 1_700_000_000_000, 1_700_000_500_000


class Mirrored(ToyEncoder):
    """Another model: the opposite of the toy's vectors."""

    def encode(self, histories):
        vectors, used = super().encode(histories)
        return -vectors, used


def encoders_of(*releases: str) -> list[ToyEncoder]:
    return [Mirrored(name) if name == "base-2" else ToyEncoder(name) for name in releases]


def write(online: OnlineStore, *events: tuple[str, str, int], releases: tuple[str, ...] = ("base-1", "base-2")) -> None:
    users, histories = events_of(*events)
    writer = GuardedWriter(online, encoders_of(*releases), history=HistorySettings())
    writer.update(users, histories, as_of_ms=as_of(users))


def write_items(online: OnlineStore, release: str) -> None:
    online.write_items(release, ITEMS, np.eye(len(ITEMS), DIMENSION, dtype=np.float32), BEFORE)


def served(features: FeatureSettings, user: str, service: str = "ranker") -> list[float] | None:
    """The user's vector as a ranker reads it, with Feast alone."""
    store = FeatureStore(repo_path=str(features.feature_repo))
    found = store.get_online_features(store.get_feature_service(service), [{"user_id": user, "item_id": "i1"}])
    return found.to_dict()["embedding"][0]


# What a release lacks


def test_a_forgotten_user_lacks_nothing(online):
    write(online, ("ann", "i1", 0), ("bob", "i2", 0))
    write_items(online, "base-2")
    writer = GuardedWriter(online, encoders_of("base-1", "base-2"), history=HistorySettings())
    writer.update(["ann"], Histories.empty(1), as_of_ms=as_of(["ann"]), forget_through=np.array([2**45]))
    found = coverage(online, "base-2", ITEMS)
    assert (found.users, found.complete) == (1, True)


def test_a_release_that_nobody_lacks_is_complete(online):
    write(online, ("ann", "i1", 0), ("bob", "i2", 0))
    write_items(online, "base-2")
    found = coverage(online, "base-2", ITEMS)
    assert found == Coverage(users=2, missing=0, behind=0, items=3, items_missing=0, examples=())
    assert found.complete


def test_a_release_for_an_empty_store_is_complete(online):
    assert coverage(online, "base-2", []) == Coverage(0, 0, 0, 0, 0, ())


def test_users_without_and_with_an_old_embedding_and_items_without_vector_are_counted(online):
    write(online, ("ann", "i1", 0), ("bob", "i2", 0))
    write(online, ("ann", "i2", 1), releases=("base-1",))  # a worker that does not know base-2
    write(online, ("cid", "i1", 0), ("dan", "i1", 0), releases=("base-1",))
    heard: list[int] = []
    found = coverage(online, "base-2", ITEMS, progress=heard.append)
    assert (found.users, found.missing, found.behind, found.items_missing) == (4, 2, 1, 3)
    assert sorted(found.examples) == ["ann", "cid", "dan"]
    assert not found.complete and sum(heard) == 4
    assert coverage(online, "base-1", []).complete


def test_who_is_behind_may_have_time_to_follow(online, monkeypatch):
    write_items(online, "base-2")
    write(online, ("ann", "i1", 0), ("bob", "i2", 0))
    write(online, ("ann", "i2", 1), ("bob", "i1", 1), releases=("base-1",))  # whose embedding waits, for example
    read, follows = online.read, iter([("bob",), ("ann",)])
    assert coverage(online, "base-2", ITEMS).behind == 2

    def and_then_followed(users, releases):
        found = read(users, releases)
        for user in next(follows, ()):
            write(online, (user, "i3", 2))  # the history moves on too
        return found

    monkeypatch.setattr(online, "read", and_then_followed)
    found = coverage(online, "base-2", ITEMS, wait_seconds=30.0)
    assert found.behind == 0 and found.complete


def test_one_missing_item_vector_makes_a_release_incomplete(online):
    write_items(online, "base-2")
    found = coverage(online, "base-2", [*ITEMS, "new"])
    assert (found.items, found.items_missing, found.complete) == (4, 1, False)


def test_items_that_the_entity_cannot_hold_keep_no_release_from_being_promoted(tmp_path):
    """A release trained on text ids, in a repo whose items have turned int64."""
    features = make_repo(tmp_path, {"type": "sqlite"}, item_id_type="int64")
    online = open_online(features)
    online.write_items("base-1", ["7"], np.eye(1, DIMENSION, dtype=np.float32), BEFORE)
    found = coverage(online, "base-1", ["7", "sofa", "007"])
    assert (found.items, found.items_missing, found.complete) == (1, 0, True)
    assert coverage(online, "base-1", ["7", "8"]).items_missing == 1


def test_users_are_read_in_pieces(online, monkeypatch):
    monkeypatch.setattr("spoor.store.promotion._CHUNK_USERS", 2)
    write(online, *((f"u{n}", "i1", n) for n in range(5)))
    heard: list[int] = []
    assert coverage(online, "base-1", [], progress=heard.append).users == 5
    assert sorted(heard) == [1, 2, 2]


# The switch


def test_a_ranker_is_served_the_promoted_release_and_by_promoting_back_the_one_before(online, features):
    write(online, ("ann", "i1", 0))
    first, second = (
        encoder.encode(events_of(("ann", "i1", 0))[1])[0][0] for encoder in encoders_of("base-1", "base-2")
    )
    for release, vector in (("base-1", first), ("base-2", second), ("base-1", first)):
        promote(features, release, now_ms=BEFORE)
        np.testing.assert_allclose(served(features, "ann"), vector, atol=1e-6)
    for release, vector in (("base_1", first), ("base_2", second)):  # pinned rankers stay where they are
        np.testing.assert_allclose(served(features, "ann", f"ranker_{release}"), vector, atol=1e-6)


def test_both_releases_stay_written_after_a_promotion(online, features):
    write(online, ("ann", "i1", 0))
    promote(features, "base-1", now_ms=BEFORE)
    promote(features, "base-2", now_ms=AFTER)
    write(online, ("ann", "i2", 1))
    assert online.read(["ann"], ["base-1", "base-2"])[0].embedding_revisions == {"base-1": 2, "base-2": 2}


@pytest.fixture
def repo(tmp_path: Path) -> FeatureSettings:
    """An applied repo on SQLite: what follows does not depend on the online store."""
    return make_repo(tmp_path, {"type": "sqlite"})


def test_the_note_says_what_was_promoted_before_and_when(repo):
    assert promotion(repo.releases_folder) is None
    promote(repo, "base-1", now_ms=BEFORE)
    assert promotion(repo.releases_folder) == Promotion("base-1", None, BEFORE, {"base-1": "base-1"})
    promote(repo, "base-2", now_ms=AFTER)
    promote(repo, "base-2", now_ms=AFTER + 1)  # as one does after a command that was killed
    aligned = {"base-1": "base-1", "base-2": "base-2"}
    assert promotion(repo.releases_folder) == Promotion("base-2", "base-1", AFTER, aligned)


def test_a_release_takes_over_its_space_alone_and_gives_it_back(repo):
    add_release(repo, "next-1", aligned={"space": "base-1"})
    for release in ("base-1", "base-2", "next-1"):
        promote(repo, release, now_ms=BEFORE)
    found = promotion(repo.releases_folder)
    assert found is not None and found.aligned == {"base-1": "next-1", "base-2": "base-2"}
    assert (found.previous, found.previous_aligned) == ("base-2", "base-1")
    promote(repo, "base-1", now_ms=AFTER)
    store = FeatureStore(repo_path=str(repo.feature_repo))
    assert store.get_feature_service("aligned_ranker_base_1").tags["model_version"] == "base-1"


def test_a_note_from_before_there_were_spaces_is_brought_up_to_date(repo):
    note = {"release": "base-2", "previous": "base-1", "promoted_at_ms": BEFORE}
    (repo.releases_folder / PROMOTED_FILE).write_text(json.dumps(note))
    promote(repo, "base-2", now_ms=AFTER)
    assert promotion(repo.releases_folder) == Promotion("base-2", "base-1", AFTER, {"base-2": "base-2"})


def test_applying_again_keeps_the_alias_and_finishes_an_interrupted_promotion(repo):
    assert "ranker" not in apply(repo).registered
    note = {"release": "base-2", "previous": None, "promoted_at_ms": BEFORE}
    (repo.releases_folder / PROMOTED_FILE).write_text(json.dumps(note))
    assert "ranker" in apply(repo).registered
    assert model_of(FeatureStore(repo_path=str(repo.feature_repo))) == "base-2"


def test_a_service_of_that_name_that_is_not_spoor_s_is_left_alone(repo):
    store = FeatureStore(repo_path=str(repo.feature_repo))
    theirs = FeatureService(name="ranker", features=[store.get_feature_view("user_activity")])
    store.apply([theirs])
    with pytest.raises(UsageError, match="not Spoor's") as caught:
        promote(repo, "base-1", now_ms=BEFORE)
    assert caught.value.hint and promotion(repo.releases_folder) is None
    assert len(store.get_feature_service("ranker").feature_view_projections) == 1


def test_a_promoted_release_whose_folder_is_gone_is_named_and_another_can_be_promoted(repo):
    promote(repo, "base-2", now_ms=BEFORE)
    (repo.releases_folder / "base-2" / "release.json").unlink()
    with pytest.raises(DataError, match="promotes release `base-2`, which is not live") as caught:
        apply(repo)
    assert "spoor release promote" in caught.value.hint
    promote(repo, "base-1", now_ms=AFTER)
    assert model_of(FeatureStore(repo_path=str(repo.feature_repo))) == "base-1"


# How long readers go on with what they have read: docs/releases.md says what these tests find


def reader(features: FeatureSettings, **registry: object) -> FeatureStore:
    """A ranker's Feast on the same registry, with settings of its own."""
    file = features.feature_repo / "feature_store.yaml"
    content = json.loads(file.read_text())
    path = content["registry"] if isinstance(content["registry"], str) else content["registry"]["path"]
    file.write_text(json.dumps(content | {"registry": {"path": path, **registry}}))
    return FeatureStore(repo_path=str(features.feature_repo))


def model_of(store: FeatureStore, *, allow_cache: bool = False) -> str:
    return store.get_feature_service("ranker", allow_cache=allow_cache).tags["model_version"]


def test_a_reader_of_a_registry_file_sees_the_switch_at_once(repo):
    promote(repo, "base-1", now_ms=BEFORE)
    store = reader(repo, cache_ttl_seconds=600)
    assert model_of(store, allow_cache=True) == "base-1"
    promote(repo, "base-2", now_ms=AFTER)
    assert model_of(store, allow_cache=True) == "base-2"
    assert cache_seconds(store) == 0


@pytest.fixture
def sql_repo(tmp_path: Path) -> Callable[[int], FeatureSettings]:
    """A repo whose registry is a database, so that Feast has only its cache's time to go by."""

    def make(seconds: int) -> FeatureSettings:
        features = make_repo(tmp_path, {"type": "sqlite"}, applied=False)
        file = features.feature_repo / "feature_store.yaml"
        (tmp_path / "state").mkdir()
        registry = {"registry_type": "sql", "path": f"sqlite:///{tmp_path}/state/sql.db", "cache_ttl_seconds": seconds}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"registry": registry}))
        apply(features)
        return features

    return make


def test_a_reader_of_another_registry_goes_on_for_the_cache_s_time(sql_repo):
    features = sql_repo(3)
    promote(features, "base-1", now_ms=BEFORE)
    store = FeatureStore(repo_path=str(features.feature_repo))
    assert model_of(store, allow_cache=True) == "base-1"
    promote(features, "base-2", now_ms=AFTER)
    assert model_of(store, allow_cache=True) == "base-1"
    assert model_of(store) == "base-2", "without the cache Feast asks the registry"
    wait_until(lambda: model_of(store, allow_cache=True) == "base-2", "the cache has expired")
    assert cache_seconds(store) == 3


def test_a_cache_without_end_is_read_again_on_demand_only(sql_repo):
    features = sql_repo(0)
    promote(features, "base-1", now_ms=BEFORE)
    store = FeatureStore(repo_path=str(features.feature_repo))
    assert model_of(store, allow_cache=True) == "base-1"
    promote(features, "base-2", now_ms=AFTER)
    assert model_of(store, allow_cache=True) == "base-1" and cache_seconds(store) is None
    store.refresh_registry()
    assert model_of(store, allow_cache=True) == "base-2"


def test_a_service_that_a_ranker_keeps_in_memory_must_be_asked_for_again_after_the_switch(online, features):
    """Feast takes the views from the object that it is given and the features from the registry."""
    write(online, ("ann", "i1", 0))
    promote(features, "base-1", now_ms=BEFORE)
    store, row = FeatureStore(repo_path=str(features.feature_repo)), [{"user_id": "ann", "item_id": "i1"}]
    kept = store.get_feature_service("ranker")
    pinned = store.get_feature_service("ranker_base_1")
    promote(features, "base-2", now_ms=AFTER)
    with pytest.warns(UserWarning, match="inconsistent"), pytest.raises(FeatureViewNotFoundException, match="base_2"):
        store.get_online_features(kept, row)
    again = store.get_feature_service("ranker", allow_cache=True)
    vectors = [store.get_online_features(service, row).to_dict()["embedding"][0] for service in (again, pinned)]
    np.testing.assert_allclose(vectors[0], np.negative(vectors[1]), atol=1e-6)


def test_spoor_itself_opens_what_it_has_switched(repo):
    promote(repo, "base-2", now_ms=BEFORE)
    store, _ = open_feature_store(repo)
    assert model_of(store) == "base-2"
