"""Release folders: whole or absent, verified when read, free of anything that runs code."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.encoder.release.folder import check_free, known_items, load_release, mark_retired
from spoor.encoder.release.info import list_releases, read_info

FILES = {
    "release.json",
    "model.safetensors",
    "vocabulary.safetensors",
    "items.parquet",
    "metrics.json",
    "curve.png",
    "MODEL_CARD.md",
    "checksums.json",
}


def edit_json(path: Path, change: dict[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_what_was_saved_is_loaded(parts, tmp_path: Path) -> None:
    info = parts.save(tmp_path / "base-1")
    assert {path.name for path in (tmp_path / "base-1").iterdir()} == FILES
    release = load_release(tmp_path / "base-1")
    assert release.info == info == read_info(tmp_path / "base-1")
    assert info.name == "base-1"
    assert info.trained_through_ms == 1_700_000_000_000
    assert release.metrics == {"recall_at_10": 0.25}
    assert release.vocabulary.item_ids == parts.vocabulary.item_ids
    assert np.array_equal(release.vocabulary.items, parts.vocabulary.items)
    assert release.weights["items.weight"].shape == (512, 8)


def test_the_model_card_names_release_time_and_quality(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    card = (tmp_path / "base-1" / "MODEL_CARD.md").read_text()
    assert "# Release base-1" in card
    assert "2023-11-14T22:13:20.000+00:00" in card
    assert "| recall_at_10 | 0.25 |" in card


def test_an_existing_release_is_replaced_only_when_asked(parts, tmp_path: Path) -> None:
    folder = tmp_path / "base-1"
    parts.save(folder)
    before = load_release(folder).weights["items.weight"]
    with pytest.raises(UsageError, match="exists already"):
        parts.save(folder, seed=1)
    assert np.array_equal(load_release(folder).weights["items.weight"], before)
    parts.save(folder, seed=1, overwrite=True)
    assert not np.array_equal(load_release(folder).weights["items.weight"], before)
    assert [path.name for path in tmp_path.iterdir()] == ["base-1"]


def test_a_failed_save_leaves_nothing(parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match="No space left on device"):
        parts.save(tmp_path / "base-1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_infrastructure_error(parts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InfrastructureError, match="cannot write"):
        parts.save(tmp_path / "file" / "base-1")


@pytest.mark.parametrize("name", sorted(FILES - {"release.json", "checksums.json"}))
def test_one_changed_byte_is_noticed(parts, tmp_path: Path, name: str) -> None:
    parts.save(tmp_path / "base-1")
    path = tmp_path / "base-1" / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=f"{name} does not match its checksum") as caught:
        load_release(tmp_path / "base-1")
    assert "spoor pretrain" in caught.value.hint


@pytest.mark.parametrize("name", sorted(FILES - {"release.json"}))
def test_a_missing_file_is_noticed(parts, tmp_path: Path, name: str) -> None:
    parts.save(tmp_path / "base-1")
    (tmp_path / "base-1" / name).unlink()
    with pytest.raises(DataError, match=f"{name}` is missing"):
        load_release(tmp_path / "base-1")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.safetensors", "items.parquet", "metrics.json"])
def test_a_pickle_in_the_place_of_a_file_is_refused_and_not_run(parts, tmp_path: Path, name: str) -> None:
    """Its checksum fits: whoever can put a pickle there can write checksums.json too."""
    parts.save(tmp_path / "base-1")
    ran, data = tmp_path / "ran", pickle.dumps({"items.weight": Touch(tmp_path / "ran")})
    (tmp_path / "base-1" / name).write_bytes(data)
    edit_json(tmp_path / "base-1" / "checksums.json", {name: hashlib.sha256(data).hexdigest()})
    with pytest.raises(DataError, match="cannot be read"):
        load_release(tmp_path / "base-1")
    assert not ran.exists()
    pickle.loads(data)
    assert ran.exists(), "the pickle would have run"


@pytest.mark.parametrize("name", ["release.json", "checksums.json"])
def test_damaged_json_is_a_data_error(parts, tmp_path: Path, name: str) -> None:
    parts.save(tmp_path / "base-1")
    path = tmp_path / "base-1" / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=name):
        load_release(tmp_path / "base-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "onnx"}, "is of format onnx"),
        ({"format_version": 1}, "is of format spoor-release 1"),
        ({"hash_version": 99}, "has hash_version 99"),
        ({"row_hash_version": 99}, "has row_hash_version 99"),
        ({"name": "other"}, "holds the release `other`"),
        ({"model": {}}, "not a model configuration"),
    ],
)
def test_a_foreign_release_is_a_data_error_with_a_hint(
    parts, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    parts.save(tmp_path / "base-1")
    edit_json(tmp_path / "base-1" / "release.json", change)
    with pytest.raises(DataError, match=message) as caught:
        load_release(tmp_path / "base-1")
    assert caught.value.hint


def test_json_is_not_read_beyond_what_a_release_holds(parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = parts.save(tmp_path / "base-1")
    monkeypatch.setattr("spoor.encoder.release.info._JSON_BYTES", 50)
    for read in (lambda: read_info(info.folder), lambda: known_items(info)):
        with pytest.raises(DataError, match="more than 50 bytes"):
            read()


def test_an_unknown_release_names_those_that_exist(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    with pytest.raises(UsageError, match=r"no release `base-2`.*found: `base-1`"):
        load_release(tmp_path / "base-2")
    with pytest.raises(UsageError, match="found: none"):
        load_release(tmp_path / "nowhere" / "base-2")


def test_listing_skips_what_is_no_release(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-2")
    parts.save(tmp_path / "base-1")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("")
    (tmp_path / ".base-3.0123").mkdir()
    (tmp_path / ".base-3.0123" / "release.json").write_text("half wr")
    assert [info.name for info in list_releases(tmp_path)] == ["base-1", "base-2"]
    assert list_releases(tmp_path / "nowhere") == []


def test_reading_a_release_does_not_import_torch() -> None:
    code = "import sys, encoder.release; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_release_that_is_marked_retired_is_still_whole(parts, tmp_path: Path) -> None:
    parts.save(tmp_path / "base-1")
    before = load_release(tmp_path / "base-1")
    for _ in range(2):
        assert mark_retired(tmp_path / "base-1").retired
    marked = load_release(tmp_path / "base-1")
    assert marked.info == dataclasses.replace(before.info, retired=True)
    assert [info.retired for info in list_releases(tmp_path)] == [True]
    assert json.loads((tmp_path / "base-1" / "release.json").read_text())["training"] == {"epochs": 0}


@pytest.mark.parametrize("change", [{"dimension": 8}, {"retired": 1}, {"retired": False}, {"more": True}])
def test_no_other_change_of_a_retired_release_passes(parts, tmp_path: Path, change: dict[str, object]) -> None:
    parts.save(tmp_path / "base-1")
    mark_retired(tmp_path / "base-1")
    edit_json(tmp_path / "base-1" / "release.json", change)
    with pytest.raises(DataError, match=r"release\.json does not match its checksum"):
        load_release(tmp_path / "base-1")


def test_known_items_are_read_without_the_weights(parts, tmp_path: Path) -> None:
    info = parts.save(tmp_path / "base-1")
    (tmp_path / "base-1" / "model.safetensors").unlink()
    assert known_items(info) == list(parts.vocabulary.item_ids)
    (tmp_path / "base-1" / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"items\.parquet does not match"):
        known_items(info)


def test_overwriting_takes_only_a_release_of_that_name(parts, tmp_path: Path) -> None:
    """The folder of all releases, named by mistake; a renamed release; an empty folder is nobody's."""
    releases = tmp_path / "releases"
    parts.save(releases / "base-1")
    (releases / "notes.txt").write_text("keep")
    parts.save(tmp_path / "base-2").folder.rename(tmp_path / "base-3")
    (tmp_path / "base-4").write_text("a file")
    for taken, what in (
        ("releases", "is no release"),
        ("base-3", "holds the release `base-2`"),
        ("base-4", "is a file"),
    ):
        before = sorted(tmp_path.rglob("*"))
        for overwrite in (False, True):
            with pytest.raises(UsageError, match=what) as error:
                parts.save(tmp_path / taken, overwrite=overwrite)
            assert "overwrite" not in error.value.hint
            example = re.search(r"for example (\S+);", error.value.hint)
            assert example is not None
            check_free(Path(example[1]), overwrite=False)
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "base-5").mkdir()
    parts.save(tmp_path / "base-5", overwrite=True)


def test_overwriting_a_release_keeps_what_others_have_put_into_its_folder(parts, tmp_path: Path) -> None:
    folder = parts.save(tmp_path / "base-1").folder
    (folder / "studies").mkdir()
    with pytest.raises(UsageError, match="also holds studies"):
        parts.save(folder, overwrite=True)
    (folder / "studies").rmdir()
    (folder / "alignment.json").write_text("{}")  # made by Spoor afterwards
    (folder / "release.json").write_text(
        (folder / "release.json").read_text().replace('"format_version": 2', '"format_version": 1')
    )
    parts.save(folder, overwrite=True)
    assert not (folder / "alignment.json").exists()


def test_a_release_behind_a_link_is_replaced_where_it_lies(parts, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "base-1").symlink_to(tmp_path / "disk" / "base-1")
    parts.save(tmp_path / "base-1")
    parts.save(tmp_path / "base-1", seed=1, overwrite=True)
    assert (tmp_path / "base-1").is_symlink()
    assert load_release(tmp_path / "base-1").info.name == "base-1"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["base-1"]
