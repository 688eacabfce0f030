"""Neighbours and rotations between two releases: planted answers, and the map beside a release's files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from spoor.base.errors import DataError
from spoor.encoder.release.alignment import (
    MAP_FILE,
    RECORD_FILE,
    Compatibility,
    compare,
    load_alignment,
    neighbour_overlap,
    orthogonal_map,
    save_alignment,
)
from spoor.encoder.release.folder import load_release
from spoor.encoder.release.inference import load_encoders

DIMENSION = 6


def unit(count: int, *, seed: int, dimension: int = DIMENSION) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rotation(*, seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(DIMENSION, DIMENSION)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_planted_rotation_is_found_from_half_of_the_vectors(mirrored: bool):
    old, planted = unit(60, seed=1), rotation(seed=2)
    if mirrored:
        planted[:, 0] *= -1
    new = old @ planted.T
    found = orthogonal_map(new[::2], old[::2])
    np.testing.assert_allclose(found, planted, atol=1e-5)
    np.testing.assert_allclose(new @ found, old, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_the_map_is_orthogonal_whatever_it_is_fitted_on(count: int):
    found = orthogonal_map(unit(count, seed=1), unit(count, seed=2))
    np.testing.assert_allclose(found @ found.T, np.eye(DIMENSION), atol=1e-5)


def test_no_other_orthogonal_map_is_nearer():
    new, old = unit(40, seed=1), unit(40, seed=2)
    best = np.linalg.norm(new @ orthogonal_map(new, old) - old)
    assert all(np.linalg.norm(new @ rotation(seed=seed) - old) >= best for seed in range(50))


def test_rotated_vectors_have_all_their_neighbours_and_unrelated_ones_as_many_as_by_chance():
    old = unit(400, seed=1)
    same = neighbour_overlap(old, old @ rotation(seed=3), neighbours=5)
    other = neighbour_overlap(old, unit(400, seed=2, dimension=9), neighbours=5)
    assert same is not None and (same.vectors, same.neighbours) == (400, 5)
    assert same.share > 0.99 and other is not None
    assert other.by_chance == pytest.approx(5 / 399) and other.share < 3 * other.by_chance


def test_overlap_counts_what_two_orders_share():
    """On a circle, by hand: 0 and 1 have each other, 3 has 2 in both; 2 has 1 in one, 3 in the other."""

    def circle(*degrees: float) -> np.ndarray:
        angles = np.radians(degrees)
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    found = neighbour_overlap(circle(0, 10, 25, 60), circle(0, 10, 60, 70), neighbours=1)
    assert found is not None and found.share == pytest.approx(3 / 4)
    assert neighbour_overlap(circle(0, 1), circle(0, 1), neighbours=2) is None


def test_rows_are_compared_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch):
    one, other = unit(37, seed=1), unit(37, seed=2)
    whole = neighbour_overlap(one, other, neighbours=3)
    monkeypatch.setattr("spoor.encoder.release.alignment._ROWS", 5)
    assert neighbour_overlap(one, other, neighbours=3) == whole


# Of releases


@pytest.fixture
def releases(parts, tmp_path: Path) -> Path:
    """base-1 and copy-1 are one model, other-1 is another; small-1 has another dimension."""
    for name, seed in (("base-1", 0), ("copy-1", 0), ("other-1", 1)):
        parts.save(tmp_path / name, seed=seed)
    config = dataclasses.replace(parts.config, dimension=parts.config.dimension // 2)
    dataclasses.replace(parts, config=config).save(tmp_path / "small-1")
    return tmp_path


def compared(releases: Path, make_histories, new: str) -> tuple[Compatibility, np.ndarray | None]:
    encoders = load_encoders(releases, ["base-1", new])
    return compare(*encoders, make_histories([5, 1, 9, 3, 4, 8, 2, 7] * 4), items=40, neighbours=3)


def test_one_model_under_two_names_is_wholly_compatible(releases, make_histories):
    report, map_DD = compared(releases, make_histories, "copy-1")
    assert (report.old, report.new) == ("base-1", "copy-1")
    for overlap, fit, count in ((report.users, report.user_fit, 32), (report.items, report.item_fit, 40)):
        assert overlap is not None and (overlap.vectors, overlap.share) == (count, 1.0)
        assert fit is not None and fit.vectors == count // 2
        assert fit.residual < 1e-3 and fit.cosine_before == pytest.approx(1, abs=1e-5)
    assert map_DD is not None


def test_two_models_have_little_in_common_before_and_more_after_the_rotation(releases, make_histories):
    report, _ = compared(releases, make_histories, "other-1")
    assert report.items is not None and report.items.share < 0.5
    assert report.user_fit is not None and report.user_fit.residual > 0.1
    assert report.user_fit.cosine_before < report.user_fit.cosine_after < 1


def test_of_different_dimensions_neighbours_alone_are_compared(releases, make_histories):
    report, map_DD = compared(releases, make_histories, "small-1")
    assert map_DD is None and report.user_fit is None and report.item_fit is None
    assert report.users is not None and report.items is not None


def stored(releases: Path, make_histories) -> np.ndarray:
    report, map_DD = compared(releases, make_histories, "other-1")
    assert map_DD is not None
    save_alignment(releases / "other-1", releases / "base-1", map_DD, report)
    return map_DD


def test_the_map_is_kept_beside_the_release_whose_checksums_still_hold(releases, make_histories):
    assert load_alignment(releases / "other-1") is None
    map_DD = stored(releases, make_histories)
    load_release(releases / "other-1")
    found = load_alignment(releases / "other-1")
    assert found is not None and (found.to, found.report["new"]) == ("base-1", "other-1")
    assert np.array_equal(found.map, map_DD)


@pytest.mark.parametrize("damage", ["map", "no map", "record", "not json", "elsewhere"])
def test_a_damaged_map_is_refused(releases, make_histories, damage: str):
    stored(releases, make_histories)
    map_file, record = releases / "other-1" / MAP_FILE, releases / "other-1" / RECORD_FILE
    if damage == "map":
        map_file.write_bytes(map_file.read_bytes()[:-1] + b"x")
    elif damage == "no map":
        map_file.unlink()
    elif damage == "record":
        record.write_text("{}")
    elif damage == "not json":
        record.write_text("{")
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"to": "../base-1"}))
    with pytest.raises(DataError, match=r"alignment\.") as caught:
        load_alignment(releases / "other-1")
    assert "spoor release compare" in caught.value.hint


@pytest.mark.parametrize("name", ["base-1", "other-1"])
def test_a_map_between_models_of_which_one_was_trained_again_is_refused(parts, releases, make_histories, name: str):
    stored(releases, make_histories)
    kept = {file: (releases / "other-1" / file).read_bytes() for file in (MAP_FILE, RECORD_FILE)}
    parts.save(releases / name, seed=7, overwrite=True)
    for file, data in kept.items():
        (releases / "other-1" / file).write_bytes(data)
    with pytest.raises(DataError, match=f"another model named `{name}`"):
        load_alignment(releases / "other-1")


def test_a_map_into_the_space_of_a_release_that_is_gone_is_still_read(releases, make_histories):
    stored(releases, make_histories)
    (releases / "base-1").rename(releases / "moved-1")
    assert load_alignment(releases / "other-1") is not None
