import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from spoor.activity.events import Event, events_table
from spoor.activity.hashing import hash_items
from spoor.activity.history import Histories, group_events, history_values
from spoor.activity.lake import Lake
from spoor.activity.packing import pack
from spoor.config import Settings
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import save_release
from spoor.operations.show import NearItem, ShownEvent, show_user
from spoor.store.online import open_online
from spoor.store.repo import apply, create_repo
from spoor.store.rows import EmbeddingRow, UserWrite
from tests.earlier_version import old_packed

T0 = 1_700_000_000_000
EVENTS = [
    Event("u", "known", "view", "home", T0),
    Event("u", "unknown", "view", "home", T0 + 1),
    Event("u", "known", "wave", "home", T0 + 2),
]
KNOWN = ["known", "other", "opposite", "unwritten"]
VECTOR = np.full(16, 0.25, np.float32)  # of the user


@pytest.fixture
def settings(tmp_path: Path, make_settings: Callable[..., Settings]) -> Settings:
    """An applied Feast repo with one release that knows some of the items."""
    settings = make_settings(
        events__actions="view,click",
        events__surfaces="home",
        features__feature_repo=tmp_path / "feature_repo",
        features__releases_folder=tmp_path / "releases",
    )
    ids = np.array(KNOWN)[np.argsort(hash_items(KNOWN))]
    save_release(
        settings.features.releases_folder / "base-1",
        model=MODEL_CONFIGS["tiny"],
        weights={},
        vocabulary=Vocabulary(
            hash_items(ids.tolist()), np.zeros(1, np.uint16), np.zeros(1, np.uint16), tuple(ids.tolist())
        ),
        trained_through_ms=T0,
        data_fingerprint="",
        metrics={},
        training={},
        curve_png=b"",
    )
    create_repo(settings.features.feature_repo, online_store={"type": "sqlite"}, state_folder=settings.state_folder)
    apply(settings.features)
    return settings


def write(settings: Settings, *, revision: int, embedded: int | None) -> None:
    """The user's history at `revision`, with an embedding computed from revision `embedded`, if any."""
    _, histories = group_events([event.user_id for event in EVENTS], history_values(events_table(EVENTS)), max_events=9)
    online = open_online(settings.features)
    for step in range(1, revision + 1):
        row = EmbeddingRow("u", VECTOR, step, 3, T0 + 2, T0 + 2, time.time_ns() // 1_000_000 - 90_000, "base-1")
        assert online.write(
            [UserWrite("u", step - 1, step, pack(histories)[0], 3, T0 + 2, T0 + 2, [row] if step == embedded else [])]
        ).all()


def write_items(settings: Settings) -> None:
    """Vectors of three of the known items, with cosines 1, about 0.83 and -1 to the user's."""
    other = VECTOR.copy()
    other[:3] = 0
    vectors = np.stack([other / np.linalg.norm(other), VECTOR, -VECTOR])
    open_online(settings.features).write_items("base-1", ["other", "known", "opposite"], vectors, created_ms=T0)


def test_a_history_is_told_newest_first_with_names_where_they_are_known(settings: Settings):
    write(settings, revision=2, embedded=1)
    shown = show_user(settings, "u")
    assert (shown.found, shown.revision) == (True, 2)
    values = history_values(events_table(EVENTS))
    assert shown.events == [
        ShownEvent(T0 + 2, "known", f"#{values['action'][2]:016x}", "home"),
        ShownEvent(T0 + 1, f"#{values['item'][1]:016x}", "view", "home"),
        ShownEvent(T0, "known", "view", "home"),
    ]
    assert shown.unknown_names == 2
    [row] = shown.embeddings
    assert (row.release, row.dimension, row.norm, row.revision, row.behind) == ("base-1", 16, 1.0, 1, 1)
    assert (row.events_used, row.event_time_ms, row.created_ms) == (3, T0 + 2, T0 + 2)
    assert 90 <= row.age_seconds < 90 + 60


def test_names_that_neither_settings_nor_a_release_know_come_from_the_lake(settings: Settings):
    write(settings, revision=1, embedded=1)
    events = events_table([*EVENTS, *(event._replace(user_id="v", action="other") for event in EVENTS)])
    rows = len(events)
    stored = events.append_column("partition", pa.array(np.zeros(rows, np.int32)))
    stored = stored.append_column("offset", pa.array(np.arange(rows)))
    stored = stored.append_column("append_time", events["timestamp"])
    Lake(settings.lake.folder, buckets=settings.lake.buckets).write("0-first", stored, {"partition": 0})
    shown = show_user(settings, "u")
    assert [event[1:] for event in map(astuple, shown.events)] == [event[1:4] for event in EVENTS[::-1]]
    assert shown.unknown_names == 0


def test_a_history_of_an_earlier_version_shows_its_names_too(settings: Settings):
    _, histories = group_events(["u"] * 3, history_values(events_table(EVENTS)), max_events=9)
    online = open_online(settings.features)
    assert online.write([UserWrite("u", 0, 1, old_packed(histories[0]), 3, T0 + 2, T0 + 2, [])]).all()
    shown = show_user(settings, "u")
    assert [(event.action, event.surface) for event in shown.events[1:]] == [("view", "home")] * 2
    assert shown.events[0].action == f"#{histories.values['action'][2] >> np.uint64(48):04x}"


def test_the_nearest_items_are_named_nearest_first_and_those_without_vector_left_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    write(settings, revision=1, embedded=1)
    assert show_user(settings, "u").embeddings[0].nearest == []  # no item vectors yet
    write_items(settings)
    expected = [NearItem("known", 1.0), NearItem("other", round(np.sqrt(13) / 4, 6)), NearItem("opposite", -1.0)]
    assert show_user(settings, "u").embeddings[0].nearest == expected
    monkeypatch.setattr("spoor.operations.show._CHUNK_ITEMS", 1)
    assert show_user(settings, "u", nearest=2).embeddings[0].nearest == expected[:2]
    assert show_user(settings, "u", nearest=0).embeddings[0].nearest == []


def test_a_user_without_embedding_has_none(settings: Settings):
    write(settings, revision=1, embedded=None)
    shown = show_user(settings, "u")
    assert shown.found and shown.embeddings == []


def test_an_unknown_user_is_not_found(settings: Settings):
    shown = show_user(settings, "nobody")
    assert (shown.found, shown.revision, shown.events, shown.embeddings) == (False, 0, [], [])


def test_a_forgotten_user_is_told_from_one_that_never_was(settings: Settings, spoor: Callable[..., Any]):
    write(settings, revision=1, embedded=1)
    online = open_online(settings.features)
    packed = pack(Histories.empty(1), np.array([T0 + 2]))[0]
    assert online.write([UserWrite("u", 1, 2, packed, 0, 0, T0, [], forgets=True)]).all()
    shown = show_user(settings, "u")
    assert (shown.found, shown.revision, shown.events, shown.embeddings) == (False, 2, [], [])
    assert shown.forgotten_through_ms == T0 + 2 and show_user(settings, "nobody").forgotten_through_ms is None
    features = settings.features
    given = ["--set", f"features.feature_repo={features.feature_repo}"]
    told = spoor(*given, "--set", f"features.releases_folder={features.releases_folder}", "show", "user", "u")
    assert told.code == 1
    assert "user u: no history, forgotten through 2023-11-14 22:13:20Z; a ranker reads nulls" in told.out


def test_the_command_tells_it_in_words_and_in_json(settings: Settings, spoor: Callable[..., Any]):
    features = settings.features
    given = ["--set", f"features.feature_repo={features.feature_repo}", "--set", "events.actions=view"]
    given += ["--set", f"features.releases_folder={features.releases_folder}"]
    missing = spoor(*given, "show", "user", "u")
    assert (missing.code, "no history" in missing.out) == (1, True)
    write(settings, revision=2, embedded=1)
    write_items(settings)
    told = spoor(*given, "show", "user", "u", "--events", "2", "--nearest", "1")
    assert told.code == 0
    lines = told.out.splitlines()
    assert lines[0] == "user u: 3 events, revision 2"
    assert lines[3] == "  … and 1 older"
    assert lines[-1].startswith("3 names are shown as `#` and their hash: neither the settings, nor a release")
    assert lines[4].startswith("base-1: 16 dimensions, norm 1.0000, 3 events used, 1 revisions behind")
    assert lines[5] == "  nearest: known (1.000)"
    shown = spoor(*given, "show", "user", "u", "--json").json
    assert [near["item"] for near in shown["embeddings"][0]["nearest"]] == ["known", "other", "opposite"]
    assert len(shown["events"]) == 3 and shown["embeddings"][0]["release"] == "base-1"
