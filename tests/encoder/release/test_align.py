"""Releases that are turned into another's space: as near as the report says, and releases like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spoor.activity.history import Histories
from spoor.base.errors import ProblemsFound, UsageError
from spoor.encoder.release.align import save_aligned
from spoor.encoder.release.alignment import Compatibility, compare
from spoor.encoder.release.folder import load_release
from spoor.encoder.release.inference import load_encoders, new_model
from spoor.encoder.release.info import ReleaseInfo, read_info
from spoor.encoder.release.pack import pack_release, plan_packing
from spoor.encoder.training.warm_start import start_from_release
from tests.releases import save_turned_release

PROBE, THROUGH = [5, 1, 9, 3, 4, 8, 2, 7] * 6, 1_800_000_000_000


@pytest.fixture
def releases(parts, tmp_path: Path) -> Path:
    """base-2 and base-3 descend from base-1, each in a space of its own."""
    parts.save(tmp_path / "base-1")
    save_turned_release(tmp_path / "base-2", tmp_path / "base-1", seed=1)
    save_turned_release(tmp_path / "base-3", tmp_path / "base-2", seed=2)
    return tmp_path


def align(releases: Path, old: str, new: str, out: str, histories: Histories) -> tuple[ReleaseInfo, Compatibility]:
    report, map_DD = compare(*load_encoders(releases, [old, new]), histories, items=50, neighbours=3)
    assert map_DD is not None
    infos = {"old": read_info(releases / old), "new": read_info(releases / new)}
    info = save_aligned(releases / out, **infos, map_DD=map_DD, report=report, fitted_through_ms=THROUGH)
    return info, report


def vectors(releases: Path, name: str, histories: Histories) -> np.ndarray:
    (encoder,) = load_encoders(releases, [name])
    return encoder.encode(histories)[0]


def residual(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_its_vectors_are_as_near_to_the_old_ones_as_the_report_says(releases, make_histories: Callable[..., Histories]):
    probe = make_histories(PROBE)
    info, report = align(releases, "base-1", "base-2", "next-1", probe)
    assert report.user_fit is not None and report.user_fit.residual < 0.5 < report.user_fit.cosine_after
    old, new, turned = (vectors(releases, name, probe) for name in ("base-1", "base-2", "next-1"))
    assert residual(turned[1::2], old[1::2]) == pytest.approx(report.user_fit.residual, abs=1e-5)
    assert residual(new, old) > 2 * residual(turned, old)
    fresh = make_histories(PROBE, seed=5)  # users that were no part of the comparison
    assert residual(*(vectors(releases, name, fresh) for name in ("next-1", "base-1"))) < 0.5
    assert (info.space, info.aligned["of"], info.trained_through_ms) == ("base-1", "base-2", THROUGH)
    assert load_release(info.folder).info == info, "whole, checksums and all"


def test_products_and_norms_stay_those_of_the_release_that_was_turned(releases, make_histories):
    probe = make_histories(PROBE)
    align(releases, "base-1", "base-2", "next-1", probe)
    before, after = load_encoders(releases, ["base-2", "next-1"])
    scores = [e.encode(probe)[0] @ e.item_vectors(e.item_hashes).T for e in (before, after)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(after.encode(probe)[0], axis=1), 1, atol=1e-5)
    assert not after.encode(make_histories([0]))[0].any(), "nobody's events, nobody's vector"


def test_a_chain_stays_in_the_space_where_it_began(releases, make_histories):
    probe = make_histories(PROBE)
    align(releases, "base-1", "base-2", "next-1", probe)
    info, report = align(releases, "next-1", "base-3", "next-2", probe)
    assert (info.space, info.aligned["to"]) == ("base-1", "next-1")
    again, _ = align(releases, "base-1", "next-2", "next-3", probe)  # a release that is turned already
    found = {name: vectors(releases, name, probe) for name in ("base-1", "base-3", "next-2", "next-3")}
    assert again.space == "base-1" and report.user_fit is not None
    assert residual(found["next-2"], found["base-1"]) < 0.5 < residual(found["base-3"], found["base-1"])
    assert residual(found["next-3"], found["base-1"]) <= residual(found["next-2"], found["base-1"]) + 1e-3


def test_packed_tables_are_shared_not_copied(releases, make_histories):
    pack_release(plan_packing(releases / "base-2", out=releases / "small-2", layout="int8"))
    probe = make_histories(PROBE)
    info, _ = align(releases, "base-1", "small-2", "next-1", probe)
    one, other = (releases / name / "tables.bin" for name in ("small-2", "next-1"))
    assert one.samefile(other) and info.packed == read_info(releases / "small-2").packed
    assert residual(*(vectors(releases, name, probe) for name in ("next-1", "base-1"))) < 0.5


def test_training_goes_on_from_an_aligned_release_as_from_the_one_that_was_turned(parts, releases, make_histories):
    align(releases, "base-1", "base-2", "next-1", make_histories(PROBE))
    models = []
    for name in ("base-2", "next-1"):
        models.append(new_model(parts.config, parts.vocabulary))
        start_from_release(models[-1], parts.vocabulary, load_release(releases / name))
    one, other = (model.state_dict() for model in models)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_rotation_cannot_bring_near_is_refused(parts, releases, make_histories):
    parts.save(releases / "other-1", seed=9)
    with pytest.raises(ProblemsFound, match="cannot stand in for those of `base-1`: the residual is 1") as caught:
        align(releases, "base-1", "other-1", "next-1", make_histories(PROBE))
    assert "--from" in caught.value.hint
    with pytest.raises(ProblemsFound, match="too few users"):
        align(releases, "base-1", "base-2", "next-1", make_histories([3]))
    assert not (releases / "next-1").exists()


def test_other_dimensions_and_names_in_use_are_refused(parts, releases, make_histories):
    config = dataclasses.replace(parts.config, dimension=parts.config.dimension // 2)
    dataclasses.replace(parts, config=config).save(releases / "short-1")
    report, map_DD = compare(
        *load_encoders(releases, ["base-1", "base-2"]), make_histories(PROBE), items=9, neighbours=3
    )
    old, rest = read_info(releases / "base-1"), {"map_DD": map_DD, "report": report, "fitted_through_ms": 0}
    with pytest.raises(UsageError, match="8 dimensions, `base-1` has 16"):
        save_aligned(releases / "next-1", old=old, new=read_info(releases / "short-1"), **rest)
    with pytest.raises(UsageError, match="exists already"):
        save_aligned(releases / "base-2", old=old, new=read_info(releases / "base-2"), **rest)
