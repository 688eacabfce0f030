"""Release folders as Feast's definitions see them, and names made from them."""

from __future__ import annotations

import json

import pytest

from spoor.base.errors import DataError, UsageError
from spoor.feature_repo.names import item_embedding_view, ranker_service, user_embedding_view
from spoor.feature_repo.releases import (
    PROMOTED_FILE,
    LiveRelease,
    Promotion,
    aligned_releases,
    is_retired,
    live_releases,
    promoted_release,
    promotion,
)


def write(folder, name, content) -> None:
    (folder / name).mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name / "release.json").write_text(text)


def test_live_releases_by_name(tmp_path):
    for name, retired in (("b-1", False), ("a-1", False), ("old-1", True)):
        write(tmp_path, name, {"name": name, "dimension": 4, "trained_through_ms": 1_000, "retired": retired})
    (tmp_path / "not-a-release").mkdir()
    write(tmp_path, ".half-written", "{")
    assert live_releases(tmp_path) == [LiveRelease("a-1", 4, 1000, "a-1"), LiveRelease("b-1", 4, 1000, "b-1")]
    assert live_releases(tmp_path / "nothing") == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", {"name": "a", "dimension": "x", "trained_through_ms": 1}])
def test_a_damaged_release_json_is_named(tmp_path, content):
    write(tmp_path, "a", content)
    with pytest.raises(DataError, match=r"a/release.json") as caught:
        live_releases(tmp_path)
    assert caught.value.hint


def test_json_that_is_too_large_or_too_deep_is_damaged(tmp_path, monkeypatch):
    write(tmp_path, "a", "[" * 200_000)
    with pytest.raises(DataError, match="RecursionError"):
        live_releases(tmp_path)
    monkeypatch.setattr("spoor.feature_repo.releases._JSON_BYTES", 10)
    with pytest.raises(DataError, match="more than 10 bytes"):
        live_releases(tmp_path)
    assert not is_retired(tmp_path / "a")


def promoted(folder, **content) -> None:
    note = {"release": "b-1", "previous": None, "promoted_at_ms": 5} | content
    (folder / PROMOTED_FILE).write_text(json.dumps(note))


def test_the_promoted_release_is_one_of_the_live_ones(tmp_path):
    live = [LiveRelease("a-1", 4, 1000, "a-1"), LiveRelease("b-1", 4, 1000, "b-1")]
    assert promotion(tmp_path) is None and promoted_release(tmp_path, live) is None
    promoted(tmp_path, previous="a-1")
    assert promotion(tmp_path) == Promotion("b-1", "a-1", 5)
    assert promoted_release(tmp_path, live) == live[1]
    with pytest.raises(DataError, match="`b-1`, which is not live") as caught:
        promoted_release(tmp_path, live[:1])
    assert caught.value.hint


def test_a_space_is_served_a_live_release_until_that_is_retired(tmp_path):
    write(tmp_path, "a-1", {"name": "a-1", "dimension": 4, "trained_through_ms": 1, "retired": True})
    write(tmp_path, "b-1", {"name": "b-1", "dimension": 4, "trained_through_ms": 1, "aligned": {"space": "c-1"}})
    live = live_releases(tmp_path)
    assert [release.space for release in live] == ["c-1"] and aligned_releases(tmp_path, live) == {}
    promoted(tmp_path, aligned={"a-1": "a-1", "c-1": "b-1"}, previous_aligned="c-1")
    assert aligned_releases(tmp_path, live) == {"c-1": "b-1"}
    promoted(tmp_path, aligned={"c-1": "gone-1"})
    with pytest.raises(DataError, match="`gone-1`, which is not live"):
        aligned_releases(tmp_path, live)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"release": "b-1", "previous": null, "promoted_at_ms": 1, "aligned": []}',
        '{"release": "../x", "previous": null, "promoted_at_ms": 1}',
    ],
)
def test_a_damaged_note_of_what_is_promoted_is_named(tmp_path, content):
    (tmp_path / PROMOTED_FILE).write_text(content)
    with pytest.raises(DataError, match=r"promoted\.json") as caught:
        promotion(tmp_path)
    assert caught.value.hint


def test_a_release_is_retired_only_where_its_folder_says_so(tmp_path):
    write(tmp_path, "old-1", {"retired": True})
    write(tmp_path, "new-1", {})
    write(tmp_path, "bad-1", "{")
    assert [is_retired(tmp_path / name) for name in ("old-1", "new-1", "bad-1", "none")] == [True, False, False, False]


def test_trained_through_is_a_date():
    assert LiveRelease("a", 4, 1_700_000_000_123, "a").trained_through == "2023-11-14T22:13:20.123+00:00"


def test_names_in_feast():
    assert user_embedding_view("base-3") == "user_embedding_base_3"
    assert item_embedding_view("base-3") == "item_embedding_base_3"
    assert ranker_service("base-3") == "ranker_base_3"


@pytest.mark.parametrize("name", ["", "Base", "3-base", "base_3", "base 3", "a" * 42, "base-3\n", "../x"])
def test_other_names_are_refused(name):
    with pytest.raises(UsageError, match="cannot name a release"):
        user_embedding_view(name)
