"""Drift between two days: planted changes are found, and two samples of one distribution are not told apart."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from spoor.activity.hashing import hash_items
from spoor.base.errors import DataError, UsageError
from spoor.batch.settings import DriftSettings
from spoor.batch.users.drift import Day, Drift, coordinate_shifts, domain_auc, last_rows, measure, read_drift
from spoor.feature_repo.names import user_embedding_view
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.offline import OfflineLog
from spoor.store.rows import EmbeddingRow

FRIDAY, SATURDAY = date(2026, 1, 2), date(2026, 1, 3)
DIMENSION = 32
Vectors = np.ndarray


def vectors_of(count: int, *, seed: int) -> Vectors:
    """Of norm 1, around a common direction, as users' vectors are."""
    found = np.random.default_rng(seed).normal(size=(count, DIMENSION)) + 0.5
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def day_of(day: date, vectors: Vectors) -> Day:
    users = np.sort(hash_items([f"u{n}" for n in range(len(vectors))]))
    return Day(day, users, vectors)


def measured(before: Vectors, after: Vectors, **settings: float) -> Drift:
    return measure("base-1", day_of(FRIDAY, before), day_of(SATURDAY, after), DriftSettings(**settings))


def shifted(vectors: Vectors) -> Vectors:
    """One coordinate moved by about half a standard deviation, norms as they were."""
    found = vectors.copy()
    found[:, 7] += 0.09
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def spread_shift(vectors: Vectors) -> Vectors:
    """Every coordinate moved a little: no mean moves far, and a classifier sees them together."""
    found = vectors + np.float32(0.033) * np.where(np.arange(DIMENSION) % 2, 1, -1).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def with_zeros(vectors: Vectors) -> Vectors:
    """Five users in a hundred without a usable event."""
    found = vectors.copy()
    found[::20] = 0
    return found


@pytest.mark.parametrize("seed", range(5))
def test_two_samples_of_one_distribution_stay_within_the_limits_at_the_least_number_of_users(seed: int):
    found = measured(vectors_of(500, seed=seed), vectors_of(500, seed=100 + seed))
    assert found.exceeded == ()
    assert found.users == (500, 500) and found.days == ("2026-01-02", "2026-01-03")
    assert 0.4 < found.auc.value < 0.6


@pytest.mark.parametrize(
    ("change", "exceeded"),
    [(shifted, "coordinate means"), (spread_shift, "domain classifier"), (with_zeros, "norms")],
)
def test_a_planted_change_exceeds_its_limit(change: Callable[[Vectors], Vectors], exceeded: str):
    before, after = vectors_of(2_000, seed=1), vectors_of(2_000, seed=2)
    assert measured(before, after).exceeded == ()
    assert exceeded in measured(before, change(after)).exceeded


def test_a_change_of_the_whole_space_is_seen_by_all_but_the_norms():
    before = vectors_of(1_000, seed=1)
    found = measured(before, -before)
    assert found.exceeded == ("coordinate means", "domain classifier")
    assert found.auc.value > 0.95


def test_limits_are_those_of_the_settings():
    before, after = vectors_of(600, seed=1), shifted(vectors_of(600, seed=2))
    assert measured(before, after, max_mean_shift=9, max_auc=1.0).exceeded == ()
    assert "coordinate means" in measured(before, after, max_mean_shift=0.0).exceeded


def test_shifts_are_in_standard_deviations_of_a_day():
    before = np.array([[0, 5], [2, 5]], np.float32)
    after = before + np.array([3, 0], np.float32)
    np.testing.assert_allclose(coordinate_shifts(before, after), [3, 0])


def test_a_classifier_is_asked_only_of_users_that_it_was_not_fitted_on():
    """The same random vectors on both days, but for one mark a user: whoever learns marks by heart knows the days."""
    vectors = vectors_of(400, seed=3)
    noise = np.random.default_rng(4).normal(scale=1e-3, size=vectors.shape).astype(np.float32)
    assert 0.4 < domain_auc(day_of(FRIDAY, vectors), day_of(SATURDAY, vectors + noise)) < 0.6


# From the offline log


def rows(vectors: Vectors, day: date, *, created: int = 0, prefix: str = "u") -> list[EmbeddingRow]:
    noon = int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp() * 1000)
    return [
        EmbeddingRow(f"{prefix}{n}", vector, 1, 1, noon, noon + created, noon, "base-1")
        for n, vector in enumerate(vectors)
    ]


@pytest.fixture
def log(tmp_path: Path) -> OfflineLog:
    return OfflineLog(FeatureSettings(releases_folder=tmp_path / "releases", offline_folder=tmp_path / "offline"))


def test_each_user_counts_once_a_day_with_the_last_row(log: OfflineLog):
    early, late = vectors_of(9, seed=1), vectors_of(9, seed=2)
    log.write_embeddings("base-1", "late", rows(late, FRIDAY, created=5))
    log.write_embeddings("base-1", "early", rows(early, FRIDAY))
    log.write_embeddings("base-1", "other-day", rows(early, SATURDAY))
    view = user_embedding_view("base-1")
    assert log.days(view) == ["2026-01-02", "2026-01-03"]
    found = last_rows(FRIDAY, log.read_day(view, FRIDAY), join_key="user_id", max_users=100)
    users = hash_items([f"u{n}" for n in range(9)])
    assert found.users.tolist() == sorted(users.tolist())
    np.testing.assert_array_equal(found.vectors, late[np.argsort(users)])
    some = last_rows(FRIDAY, log.read_day(view, FRIDAY), join_key="user_id", max_users=4)
    assert some.users.tolist() == found.users[:4].tolist()
    np.testing.assert_array_equal(some.vectors, found.vectors[:4])


def test_days_without_rows_have_no_users(log: OfflineLog):
    assert len(last_rows(FRIDAY, [], join_key="user_id", max_users=4).users) == 0
    empty = pa.table({"user_id": pa.array([], pa.string())})
    assert len(last_rows(FRIDAY, [empty], join_key="user_id", max_users=4).users) == 0
    assert log.days(user_embedding_view("base-1")) == []


def test_drift_of_the_log_is_that_of_its_vectors(log: OfflineLog):
    before, after = vectors_of(600, seed=1), shifted(vectors_of(600, seed=2))
    for n in range(0, 600, 250):  # several work items
        log.write_embeddings("base-1", f"friday-{n}", rows(before[n : n + 250], FRIDAY, prefix=f"u{n}-"))
    log.write_embeddings("base-1", "saturday", rows(after, SATURDAY))
    found = read_drift(log.features, "base-1", (FRIDAY, SATURDAY), DriftSettings())
    assert found.users == (600, 600) and "coordinate means" in found.exceeded and found.coordinate == 7
    np.testing.assert_allclose(found.mean_shift.value, coordinate_shifts(before, after).max(), rtol=1e-6)


def test_a_day_with_too_few_users_is_refused_with_the_days_that_there_are(log: OfflineLog):
    log.write_embeddings("base-1", "friday", rows(vectors_of(60, seed=1), FRIDAY))
    with pytest.raises(UsageError, match="rows of 0 users on 2026-01-03") as caught:
        read_drift(log.features, "base-1", (FRIDAY, SATURDAY), DriftSettings(min_users=50))
    assert "newest days with rows: 2026-01-02" in caught.value.message and "drift.min_users" in caught.value.hint


def test_a_file_that_the_manifest_names_and_that_is_damaged_is_named(log: OfflineLog):
    log.write_embeddings("base-1", "friday", rows(vectors_of(60, seed=1), FRIDAY))
    [path] = log.folder.glob("user_embedding_base_1/day=2026-01-02/*.parquet")
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"friday\.parquet"):
        read_drift(log.features, "base-1", (FRIDAY, SATURDAY), DriftSettings(min_users=50))


@pytest.mark.parametrize("bad", [{"max_auc": 0.4}, {"max_mean_shift": -1.0}, {"min_users": 5}, {"max_users": 100}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]):
    with pytest.raises(UsageError, match=r"drift\.") as caught:
        DriftSettings(**bad)  # pyright: ignore[reportArgumentType]
    assert caught.value.hint
