"""Measures how far a release's vectors have drifted between two days; a ranker trained on the first reads the second.

Reads every user's last row of each day (UTC, by created_timestamp) from the offline log. Three figures, each with a
limit in the settings:

- norms: the difference of the days' mean norms. A vector has norm 1, or 0 if no event was usable.
- coordinate means: the largest shift of a coordinate's mean, in standard deviations within a day.
- domain classifier: AUC of a linear classifier (Fisher's discriminant, closed form) that separates the days, over users
  that it was not fitted on; 0.5 = chance. A user is in the same half on both days.

Legend: N users of a day, d floats of a vector (D).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spoor.activity.hashing import hash_items
from spoor.base.errors import UsageError
from spoor.batch.settings import DriftSettings
from spoor.encoder.evaluation.auc import auc
from spoor.feature_repo.names import user_embedding_view
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.offline import open_offline

_LEAST_DEVIATION = 1e-6  # of a coordinate; below it a day's values count as equal
_RIDGE = 1e-3  # of the mean variance, added to the covariance
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Day:
    """A day's users as ascending hashes, and their vectors float32[N, d]."""

    day: date
    users: npt.NDArray[np.uint64]
    vectors: Vectors

    @property
    def mean_norm(self) -> float:
        return float(np.linalg.norm(self.vectors, axis=1).mean())


@dataclass(frozen=True)
class Figure:
    value: float
    limit: float

    @property
    def exceeded(self) -> bool:
        return self.value > self.limit


@dataclass(frozen=True)
class Drift:
    release: str
    days: tuple[str, str]
    users: tuple[int, int]
    mean_norms: tuple[float, float]
    norm_change: Figure
    mean_shift: Figure
    auc: Figure
    coordinate: int  # the one whose mean has shifted most
    exceeded: tuple[str, ...]  # names of the figures above their limits


def read_drift(features: FeatureSettings, release: str, days: tuple[date, date], settings: DriftSettings) -> Drift:
    """Reads both days of the release's offline log and measures the drift. Raises UsageError for a day with too few
    users, DataError for a damaged log."""
    offline, view = open_offline(features), features.named(user_embedding_view(release))
    known = ", ".join(offline.days(view)[-5:]) or "none"
    read = []
    for day in days:
        found = last_rows(
            day, offline.read_day(view, day), join_key=features.user_join_key, max_users=settings.max_users
        )
        if len(found.users) < settings.min_users:
            raise UsageError(
                f"release `{release}` has rows of {len(found.users)} users on {day} in the offline log, "
                f"expected {settings.min_users} at least; newest days with rows: {known}",
                hint="choose days with more traffic, run `spoor archive`, or lower drift.min_users",
            )
        read.append(found)
    return measure(release, read[0], read[1], settings)


def last_rows(day: date, tables: Iterable[pa.Table], *, join_key: str, max_users: int) -> Day:
    """The last row of each of the `max_users` users with the smallest id hashes: a random sample. Holds one table and
    the sample in memory."""
    users, times = np.empty(0, np.uint64), np.empty((0, 2), np.int64)
    vectors = np.empty((0, 0), np.float32)
    for table in tables:
        if not len(table):
            continue
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        new = flat.astype(np.float32).reshape(len(table), -1)
        users = np.concatenate([users, hash_items(table[join_key].cast(pa.string()).to_pylist())])
        times = np.concatenate(
            [times, np.stack([table[name].to_numpy() for name in ("created_ms", "computed_at_ms")], 1)]
        )
        vectors = np.concatenate([vectors.reshape(-1, new.shape[1]), new])
        order = np.lexsort((times[:, 1], times[:, 0], users))
        last = np.append(users[order][1:] != users[order][:-1], True)
        chosen = order[last][:max_users]
        users, times, vectors = users[chosen], times[chosen], vectors[chosen]
    return Day(day, users, vectors)


def measure(release: str, before: Day, after: Day, settings: DriftSettings) -> Drift:
    """The drift between two days; the caller has checked `min_users`."""
    shifts = coordinate_shifts(before.vectors, after.vectors)
    norms = before.mean_norm, after.mean_norm
    figures = {
        "norms": Figure(abs(norms[1] - norms[0]), settings.max_norm_change),
        "coordinate means": Figure(float(shifts.max()), settings.max_mean_shift),
        "domain classifier": Figure(domain_auc(before, after), settings.max_auc),
    }
    return Drift(
        release=release,
        days=(before.day.isoformat(), after.day.isoformat()),
        users=(len(before.users), len(after.users)),
        mean_norms=norms,
        norm_change=figures["norms"],
        mean_shift=figures["coordinate means"],
        auc=figures["domain classifier"],
        coordinate=int(shifts.argmax()),
        exceeded=tuple(name for name, figure in figures.items() if figure.exceeded),
    )


def coordinate_shifts(before_ND: Vectors, after_ND: Vectors) -> npt.NDArray[np.float64]:
    """float64[d]: absolute shift of each coordinate's mean, in standard deviations within a day."""
    difference = after_ND.mean(0, dtype=np.float64) - before_ND.mean(0, dtype=np.float64)
    variance = (before_ND.var(0, dtype=np.float64) + after_ND.var(0, dtype=np.float64)) / 2
    return np.abs(difference) / np.maximum(np.sqrt(variance), _LEAST_DEVIATION)


def domain_auc(before: Day, after: Day) -> float:
    """AUC of Fisher's discriminant, fitted on one half of the users and tested on the other."""
    fitted, asked = ([_half(day, which) for day in (before, after)] for which in (0, 1))
    direction = _discriminant(*fitted)
    scores = np.concatenate([vectors @ direction for vectors in asked])
    labels = np.concatenate([np.full(len(vectors), float(label)) for label, vectors in enumerate(asked)])
    return auc(scores, labels)


def _half(day: Day, which: int) -> npt.NDArray[np.float64]:
    return day.vectors[(day.users & np.uint64(1)) == which].astype(np.float64)


def _discriminant(before_ND: npt.NDArray[np.float64], after_ND: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """float64[d]: the pooled covariance's inverse times the difference of the means."""
    means = [vectors.mean(0) for vectors in (before_ND, after_ND)]
    centred = np.concatenate([before_ND - means[0], after_ND - means[1]])
    covariance = centred.T @ centred / len(centred)
    ridge = max(_RIDGE * float(np.trace(covariance)) / len(covariance), _LEAST_DEVIATION**2)
    return np.linalg.solve(covariance + ridge * np.eye(len(covariance)), means[1] - means[0])
