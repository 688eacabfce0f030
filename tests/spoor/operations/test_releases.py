"""Promoting and retiring releases, by the commands, on genuine SQLite and a genuine broker."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import FeatureService, FeatureStore, Field
from feast.errors import FeatureViewNotFoundException
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64
from kafka import KafkaAdminClient

from spoor.activity.events import Event, events_table
from spoor.activity.history import group_events, history_values
from spoor.base.errors import InfrastructureError, ProblemsFound, UsageError
from spoor.base.locks import exclusive
from spoor.batch.kafka.publish import Publisher
from spoor.broker.create_topics import ensure_topics
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.encoder.release.folder import load_release, mark_retired
from spoor.encoder.release.inference import load_encoders
from spoor.encoder.release.info import read_info
from spoor.feature_repo.releases import PROMOTED_FILE, live_releases, promotion
from spoor.operations.releases import plan_retirement, promote, retire
from spoor.store.offline import open_offline
from spoor.store.online import open_online
from spoor.store.repo import apply, create_repo
from spoor.store.writer import GuardedWriter
from tests.conftest import free_port
from tests.releases import save_turned_release, save_untrained_release

Spoor = Callable[..., Any]
T0 = 1_700_000_000_000
ITEMS = [f"item-{n}" for n in range(12)]
USERS = [f"user-{n}" for n in range(5)]
RELEASES = ("base-1", "base-2")


def make_world(settings: Settings, *, filled: bool = True) -> None:
    """Two releases, an applied Feast repo, and five users with the embeddings of both."""
    for seed, name in enumerate(RELEASES):
        save_untrained_release(
            settings.features.releases_folder / name, items=ITEMS, actions=["view"], surfaces=["home"], seed=seed
        )
    create_repo(settings.features.feature_repo, online_store={"type": "sqlite"}, state_folder=settings.state_folder)
    apply(settings.features)
    if not filled:
        return
    write(settings, time=0)
    for encoder in load_encoders(settings.features.releases_folder, RELEASES):
        online = open_online(settings.features)
        online.write_items(encoder.release, encoder.item_ids, encoder.item_vectors(encoder.item_hashes), T0)


def write(settings: Settings, *, time: int, releases: tuple[str, ...] = RELEASES) -> None:
    """One event for every user, as a worker with these releases writes it."""
    events = [Event(user, ITEMS[n], "view", "home", T0 + time) for n, user in enumerate(USERS)]
    users, histories = group_events(USERS, history_values(events_table(events)), max_events=64)
    encoders = load_encoders(settings.features.releases_folder, list(releases))
    writer = GuardedWriter(open_online(settings.features), encoders, history=settings.history)
    writer.update(users, histories, as_of_ms=np.full(len(users), T0 + time))


def registered(settings: Settings) -> set[str]:
    store = FeatureStore(repo_path=str(settings.features.feature_repo))
    return {o.name for o in [*store.list_feature_views(), *store.list_feature_services()]}


def of_release(names: set[str], release: str) -> set[str]:
    return {name for name in names if name.endswith(release.replace("-", "_"))}


@pytest.fixture
def settings(settings: Settings, kafka: KafkaSettings) -> Settings:
    """On the session's broker, which a promotion asks for workers."""
    return dataclasses.replace(
        settings, kafka=dataclasses.replace(settings.kafka, port=kafka.port, folder=kafka.folder)
    )


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Without topics."""
    make_world(settings)
    return settings


@pytest.fixture
def published(kafka_settings: Settings) -> Settings:
    """On the session's broker, everybody's rows of both releases on their topics."""
    make_world(kafka_settings)
    ensure_topics(kafka_settings.kafka, releases=RELEASES)
    with Publisher(kafka_settings.kafka, open_online(kafka_settings.features), RELEASES) as publisher:
        publisher.publish_users(USERS)
    return kafka_settings


def topics(settings: Settings) -> set[str]:
    admin = KafkaAdminClient(**settings.kafka.client_options())
    found = set(admin.list_topics())
    admin.close()
    return found


# Promoting


def test_a_complete_release_is_promoted_listed_and_promoted_back(spoor: Spoor, world: Settings):
    done = spoor("release", "promote", "base-1", "--json")
    assert (done.code, done.json["release"], done.json["previous"], done.json["changed"]) == (0, "base-1", None, True)
    assert done.json["coverage"] == {
        "users": 5, "missing": 0, "behind": 0, "items": 12, "items_missing": 0, "examples": []
    }  # fmt: skip
    assert "ranker" in registered(world)
    text = spoor("release", "promote", "base-2").out
    assert "ranker is base-2: 5 users and 12 items, none missing or behind" in text
    assert "base-1 stays live: promote it to go back" in text
    listed = spoor("release", "list", "--json").json["releases"]
    assert [(r["name"], r["promoted"], r["retired"]) for r in listed] == [
        ("base-1", False, False), ("base-2", True, False)
    ]  # fmt: skip
    assert [line.endswith("  promoted") for line in spoor("release", "list").out.splitlines()] == [False, True]
    assert spoor("release", "promote", "base-1", "--json").json["previous"] == "base-2"
    again = spoor("release", "promote", "base-1", "--json").json
    assert (again["previous"], again["changed"]) == ("base-1", False)
    assert {release.name for release in live_releases(world.features.releases_folder)} == set(RELEASES)


def test_a_dry_run_counts_and_switches_nothing(spoor: Spoor, world: Settings):
    done = spoor("release", "promote", "base-2", "--dry-run", "--json")
    assert (done.code, done.json["dry_run"], done.json["coverage"]["users"]) == (0, True, 5)
    assert promotion(world.features.releases_folder) is None and "ranker" not in registered(world)
    assert "could be promoted" in spoor("release", "promote", "base-2", "--dry-run").out


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_release_that_some_worker_did_not_write_is_refused_with_counts(
    spoor: Spoor, world: Settings, flags: tuple[str, ...]
):
    write(world, time=1, releases=("base-1",))
    told = spoor("release", "promote", "base-2", *flags).failed_with(1)
    assert "of 5 users with a history 0 have no embedding and 5 one of an earlier history, for example 'user-" in told
    assert "spoor backfill --release base-2" in told
    assert promotion(world.features.releases_folder) is None
    write(world, time=2)
    assert spoor("release", "promote", "base-2", *flags).code == 0


def test_a_release_without_item_vectors_is_refused(spoor: Spoor, world: Settings):
    save_untrained_release(
        world.features.releases_folder / "base-3", items=ITEMS, actions=["view"], surfaces=["home"], seed=3
    )
    assert "does not know the release `base-3`" in spoor("release", "promote", "base-3").failed_with(2)
    apply(world.features)
    write(world, time=1, releases=(*RELEASES, "base-3"))
    assert "of 12 items 12 have no vector" in spoor("release", "promote", "base-3").failed_with(1)


def test_a_release_that_no_worker_is_told_to_write_cannot_be_promoted(world: Settings):
    limited = dataclasses.replace(world, stream=dataclasses.replace(world.stream, releases=("base-1",)))
    with pytest.raises(UsageError, match="workers do not write `base-2`"):
        promote(limited, "base-2")
    assert promote(limited, "base-1").changed


def test_an_unknown_or_retired_release_cannot_be_promoted(spoor: Spoor, world: Settings):
    assert "no release `base-9`" in spoor("release", "promote", "base-9").failed_with(2)
    mark_retired(world.features.releases_folder / "base-2")
    assert "`base-2` is retired" in spoor("release", "promote", "base-2").failed_with(2)


# Retiring


def test_a_retired_release_loses_service_views_rows_and_topic_and_keeps_folder_and_offline_rows(published: Settings):
    promote(published, "base-2")
    assert all(open_online(published.features).read_embeddings("base-1", USERS))
    result = retire(published, "base-1")
    assert (result.landed_rows, result.topic_deleted, result.plan.live) == (5, True, ("base-2",))
    assert set(result.removed) == {"user_embedding_base_1", "item_embedding_base_1", "ranker_base_1"}
    names = registered(published)
    assert not of_release(names, "base-1") and len(of_release(names, "base-2")) == 4 and "ranker" in names
    found = topics(published)
    assert published.kafka.embedding_topic("base-1") not in found
    assert published.kafka.embedding_topic("base-2") in found
    folder = published.features.releases_folder / "base-1"
    assert read_info(folder).retired and load_release(folder).info.name == "base-1"
    assert sorted(open_offline(published.features).read("user_embedding_base_1")["user_id"].to_pylist()) == USERS
    assert all(open_online(published.features).read_embeddings("base-2", USERS))


def test_a_retired_release_is_written_by_nobody_and_a_user_keeps_the_others(published: Settings):
    promote(published, "base-2")
    retire(published, "base-1")
    assert [release.name for release in live_releases(published.features.releases_folder)] == ["base-2"]
    write(published, time=1, releases=("base-2",))
    assert open_online(published.features).read(USERS, ["base-2"])[0].embedding_revisions == {"base-2": 2}


def test_rows_of_a_release_are_gone_from_the_store_itself(published: Settings):
    """Not only from what Feast shows: a release of that name would otherwise begin with them."""
    promote(published, "base-2")
    retire(published, "base-1")
    folder = published.features.releases_folder
    marked = json.loads((folder / "base-1" / "release.json").read_text())
    (folder / "base-1" / "release.json").write_text(json.dumps(marked | {"retired": False}))
    apply(published.features)
    online = open_online(published.features)
    assert online.read_embeddings("base-1", USERS) == [None] * len(USERS)
    assert online.count_items("base-1", ITEMS) == 0


@pytest.mark.parametrize("step", ["land_release", "apply", "delete_topic", "remove_release"])
def test_a_retirement_that_was_killed_is_finished_by_running_it_again(
    published: Settings, monkeypatch: pytest.MonkeyPatch, step: str
):
    promote(published, "base-2")
    place = {
        "land_release": "spoor.batch.kafka.archive_embeddings.land_release",
        "apply": "spoor.store.repo.apply",
        "delete_topic": "spoor.broker.create_topics.delete_topic",
        "remove_release": "spoor.store.online.OnlineStore.remove_release",
    }[step]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, killed)
        retire(published, "base-1")
    assert read_info(published.features.releases_folder / "base-1").retired
    result = retire(published, "base-1")
    assert result.plan.resumed and "goes on with what an earlier run began" in result.plan.text()
    assert not of_release(registered(published), "base-1")
    assert published.kafka.embedding_topic("base-1") not in topics(published)
    assert open_offline(published.features).read("user_embedding_base_1").num_rows == len(USERS)
    done = retire(published, "base-1")
    assert (done.removed, done.landed_rows, done.topic_deleted) == ((), 0, False)


def test_the_promoted_and_the_last_live_release_are_refused(spoor: Spoor, world: Settings):
    spoor("release", "promote", "base-2")
    refused = spoor("release", "retire", "base-2", "--yes", "--keep-topic").failed_with(2)
    assert "`base-2` is promoted" in refused
    mark_retired(world.features.releases_folder / "base-1")
    (world.features.releases_folder / PROMOTED_FILE).unlink()
    assert "the only live one" in spoor("release", "retire", "base-2", "--yes", "--keep-topic").failed_with(2)
    assert not read_info(world.features.releases_folder / "base-2").retired
    assert "no release `base-9`" in spoor("release", "retire", "base-9", "--yes").failed_with(2)


def test_a_release_that_workers_are_told_to_write_is_refused(world: Settings):
    stream = dataclasses.replace(world.stream, releases=("base-1",))
    with pytest.raises(UsageError, match=r"stream\.releases names `base-1`"):
        plan_retirement(dataclasses.replace(world, stream=stream), "base-1")


def test_a_release_that_cached_readers_may_still_show_is_refused_until_their_time_is_over(world: Settings):
    file = world.features.feature_repo / "feature_store.yaml"
    content = json.loads(file.read_text())
    slow = {"path": content["registry"], "cache_mode": "thread", "cache_ttl_seconds": 300}
    file.write_text(json.dumps(content | {"registry": slow}))
    for release in RELEASES:
        promote(world, release)
    with pytest.raises(ProblemsFound, match=r"served by release `base-1` until .* for 300 s"):
        plan_retirement(world, "base-1")
    note = world.features.releases_folder / PROMOTED_FILE
    earlier = time.time_ns() // 1_000_000 - 301_000
    note.write_text(json.dumps(json.loads(note.read_text()) | {"promoted_at_ms": earlier}))
    assert plan_retirement(world, "base-1").live == ("base-2",)


def test_nothing_is_retired_without_a_yes_or_in_a_dry_run(spoor: Spoor, world: Settings):
    dry = spoor("release", "retire", "base-1", "--dry-run", "--json")
    assert (dry.code, dry.json["dry_run"], dry.json["plan"]["services"]) == (0, True, ["ranker_base_1"])
    assert dry.json["plan"]["topic"] == "user-embeddings.base-1"
    assert "then give --yes" in spoor("release", "retire", "base-1").failed_with(2)
    assert not read_info(world.features.releases_folder / "base-1").retired


def test_what_others_registered_on_a_release_is_named_and_refuses_its_retirement(spoor: Spoor, world: Settings):
    spoor("release", "promote", "base-2", "--without-workers")
    store = FeatureStore(repo_path=str(world.features.feature_repo))
    view, other = (store.get_feature_view(f"user_embedding_{release}") for release in ("base_1", "base_2"))

    @on_demand_feature_view(sources=[view], schema=[Field(name="doubled", dtype=Int64)])
    def length(rows: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"doubled": rows["events_used"] * 2})

    services = [
        FeatureService(name="theirs", features=[view[["events_used"]]]),
        FeatureService(name="indirect", features=[length]),
        FeatureService(name="other", features=[other]),
    ]
    store.apply([length, *services])
    for more in ([], ["--dry-run"]):
        refused = spoor("release", "retire", "base-1", "--keep-topic", "--yes", *more).failed_with(1)
        assert "used by service `indirect`, service `theirs`, view `length`" in refused and "other" not in refused
    assert not read_info(world.features.releases_folder / "base-1").retired
    done = spoor("release", "retire", "base-1", "--keep-topic", "--yes", "--force", "--json")
    assert done.code == 0 and "fail at every read" in done.err
    assert done.json["plan"]["breaks"] == ["service `indirect`", "service `theirs`", "view `length`"]
    store = FeatureStore(repo_path=str(world.features.feature_repo))
    assert {service.name for service in store.list_feature_services()} >= {"theirs", "indirect", "other"}
    with pytest.raises(FeatureViewNotFoundException):
        store.get_online_features(store.get_feature_service("theirs"), [{"user_id": USERS[0]}])
    assert store.get_online_features(store.get_feature_service("other"), [{"user_id": USERS[0]}]).to_dict()


def test_without_a_broker_nothing_is_switched_unless_there_are_no_workers(
    spoor: Spoor, world: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPOOR_KAFKA__PORT", str(free_port()))
    assert "no Kafka broker answers" in spoor("release", "promote", "base-2").failed_with(3)
    assert promotion(world.features.releases_folder) is None
    assert spoor("release", "promote", "base-2", "--without-workers").code == 0


def test_without_a_broker_nothing_is_marked_unless_the_topic_may_stay(
    spoor: Spoor, world: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPOOR_KAFKA__PORT", str(free_port()))
    assert "no Kafka broker answers" in spoor("release", "retire", "base-1", "--yes").failed_with(3)
    assert not read_info(world.features.releases_folder / "base-1").retired
    done = spoor("release", "retire", "base-1", "--yes", "--keep-topic")
    assert done.code == 0 and "its topic stays" in done.err
    assert "base-1 is retired: removed item_embedding_base_1, ranker_base_1, user_embedding_base_1" in done.out
    assert [line.endswith("  retired") for line in spoor("release", "list").out.splitlines()] == [True, False]
    assert not of_release(registered(world), "base-1")


@pytest.mark.parametrize("lock", ["backfill.lock", "export.lock", "release.lock", "verify.lock"])
def test_another_job_in_the_way_is_told_before_anything_is_marked(world: Settings, lock: str):
    with (
        exclusive(world.state_folder / "jobs" / lock, job="another job"),
        pytest.raises(InfrastructureError, match="already runs"),
    ):
        retire(world, "base-1", keep_topic=True)
    assert not read_info(world.features.releases_folder / "base-1").retired


def test_the_rows_of_the_other_release_stay_as_they_were(world: Settings):
    online = open_online(world.features)
    before = online.read_embeddings("base-2", USERS)
    retire(world, "base-1", keep_topic=True)
    after = open_online(world.features).read_embeddings("base-2", USERS)
    for one, other in zip(before, after, strict=True):
        assert one is not None and other is not None
        assert np.array_equal(one.embedding, other.embedding) and one.revision == other.revision


# Comparing


def test_two_releases_are_compared_and_the_rotation_is_kept_with_the_new_one(spoor: Spoor, world: Settings):
    events = [Event(f"more-{n}", ITEMS[n % 7], "view", "home", T0 + n) for n in range(30)]
    users, histories = group_events(
        [event.user_id for event in events], history_values(events_table(events)), max_events=64
    )
    encoders = load_encoders(world.features.releases_folder, RELEASES)
    writer = GuardedWriter(open_online(world.features), encoders, history=world.history)
    writer.update(users, histories, as_of_ms=np.full(len(users), T0))
    dry = spoor("release", "compare", "base-1", "base-2", "--dry-run", "--json").json
    assert (dry["stored"], dry["report"]["users"]["vectors"], dry["report"]["items"]["vectors"]) == (False, 35, 12)
    assert spoor("release", "show", "base-2", "--json").json["alignment"] is None
    done = spoor("release", "compare", "base-1", "base-2", "--sample", "20", "--neighbours", "3")
    assert done.code == 0, done.err
    assert "20 users: " in done.out and "12 items: " in done.out and "of 3 neighbours in common (" in done.out
    assert "of 10 held out: cosine with the old vector " in done.out
    assert "the rotation is in the folder of base-2" in done.out
    shown = spoor("release", "show", "base-2")
    assert "rotation            into the space of base-1" in shown.out and "checksums match" in shown.out
    assert spoor("release", "show", "base-2", "--json").json["alignment"]["users"]["neighbours"] == 3


# Aligned releases


def read_by_ranker(settings: Settings, service: str) -> np.ndarray:
    """float32[U, d] of everybody, by Feast alone."""
    store = FeatureStore(repo_path=str(settings.features.feature_repo))
    rows = [{"user_id": user, "item_id": ITEMS[0]} for user in USERS]
    answer = store.get_online_features(store.get_feature_service(service), rows).to_dict()
    return np.array(answer["embedding"], np.float32)


def write_items(settings: Settings, *releases: str) -> None:
    online = open_online(settings.features)
    for encoder in load_encoders(settings.features.releases_folder, releases):
        online.write_items(encoder.release, encoder.item_ids, encoder.item_vectors(encoder.item_hashes), T0)


def test_a_ranker_goes_on_with_what_it_learned_through_releases_that_are_aligned(spoor: Spoor, settings: Settings):
    """As docs/releases.md tells it: base-2 arrives, is turned into base-1's space, and is promoted as next-1."""
    make_world(settings, filled=False)
    folder = settings.features.releases_folder
    shutil.rmtree(folder / "base-2")
    save_turned_release(folder / "base-2", folder / "base-1")
    write(settings, time=0)
    write(settings, time=1)
    write_items(settings, "base-1")
    assert spoor("release", "promote", "base-1").code == 0
    old = read_by_ranker(settings, "aligned_ranker_base_1")

    dry = spoor("release", "compare", "base-1", "base-2", "--aligned", "next-1", "--dry-run", "--json")
    assert dry.json["aligned"] is None and not (folder / "next-1").exists()
    done = spoor("release", "compare", "base-1", "base-2", "--aligned", "next-1", "--neighbours", "2", "--json")
    assert (done.code, done.json["aligned"]) == (0, "next-1"), done.err
    assert "exists already" in spoor("release", "compare", "base-1", "base-2", "--aligned", "next-1").failed_with(2)
    assert "next-1  16 dimensions" in spoor("release", "list").out
    assert "vectors             of base-2, in the space of base-1" in spoor("release", "show", "next-1").out

    apply(settings.features)
    live = ("base-1", "base-2", "next-1")
    write(settings, time=0, releases=live)  # everybody's embedding of the new release
    write_items(settings, "base-2", "next-1")
    text = spoor("release", "promote", "next-1").out
    assert "aligned_ranker_base_1 is next-1, base-1 before" in text
    new = read_by_ranker(settings, "aligned_ranker_base_1")
    assert np.array_equal(new, read_by_ranker(settings, "ranker")) and not np.allclose(new, old, atol=1e-3)
    stated = done.json["report"]["user_fit"]
    assert (new * old).sum(1).mean() == pytest.approx(stated["cosine_after"], abs=0.1)
    assert (read_by_ranker(settings, "ranker_base_2") * old).sum(1).mean() < 0.5

    assert spoor("release", "promote", "base-2").code == 0  # another space: who learned in the first one stays
    assert np.array_equal(read_by_ranker(settings, "aligned_ranker_base_1"), new)
    refused = spoor("release", "retire", "next-1", "--yes", "--keep-topic").failed_with(2)
    assert "`aligned_ranker_base_1` serves release `next-1`" in refused
    assert spoor("release", "promote", "base-1").code == 0  # the way back
    assert np.array_equal(read_by_ranker(settings, "aligned_ranker_base_1"), old)
    assert spoor("release", "promote", "next-1").code == 0
    assert retire(settings, "base-1", keep_topic=True).removed  # the space outlives the release that it is named after
    assert np.array_equal(read_by_ranker(settings, "aligned_ranker_base_1"), new)
    assert spoor("release", "promote", "base-2").code == 0
    gone = retire(settings, "next-1", keep_topic=True)
    assert "aligned_ranker_base_1" in gone.removed and gone.plan.services[-1] == "aligned_ranker_base_1"


def test_what_cannot_be_compared_exits_with_2(spoor: Spoor, settings: Settings):
    make_world(settings, filled=False)
    assert "another one" in spoor("release", "compare", "base-1", "base-1").failed_with(2)
    assert "no release `base-9`" in spoor("release", "compare", "base-1", "base-9").failed_with(2)
    assert "no history to compare" in spoor("release", "compare", "base-1", "base-2").failed_with(2)
