"""Metrics of the fine-tuning tables: AUC over impressions and HIT@3 over groups, by slices of item age.

A row's figure is the mean over seeds. Its interval comes from a bootstrap over users with the same draws for every
row, so the difference of two rows is a paired comparison. A slice with fewer than `CLAIM_POSITIVES` positives supports
no claim.

Legend: n impressions, S seeds, U users, B draws, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from spoor.encoder.evaluation.auc import SortedScores
from spoor.encoder.evaluation.intervals import interval, user_draws
from spoor.ranking.features.impressions import DAY_MS, Impressions

CLAIM_POSITIVES = 200
MIN_CANDIDATES = 5
TOP = 3
SLICES = {"all items": np.inf, "younger than 28 days": 28.0, "younger than 7 days": 7.0}
GroupBy = Literal["request", "user-week"]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    mean: float  # NaN if the slice has only one kind of label
    low: float  # 95 % interval
    high: float


@dataclass(frozen=True)
class Measured:
    """One metric of one ranker on one slice."""

    ranker: str
    slice: str
    metric: str
    figure: Estimate
    impressions: int
    positives: int
    groups: int  # number of groups of HIT@3; 0 for AUC


@dataclass(frozen=True)
class Compared:
    """`difference` = second minus first, paired."""

    first: str
    second: str
    slice: str
    metric: str
    difference: Estimate
    positives: int

    @property
    def verdict(self) -> str:
        if self.positives < CLAIM_POSITIVES:
            return f"no claim: {self.positives} positives"
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "no difference shown"


@dataclass(frozen=True, eq=False)
class Measurements:
    """Per (ranker, slice, metric): the row, and the mean over seeds for each draw, float64 [B]."""

    rows: tuple[Measured, ...]
    draws: Mapping[tuple[str, str, str], Values]

    def compare(self, first: str, second: str) -> list[Compared]:
        found = {(row.ranker, row.slice, row.metric): row for row in self.rows}
        return [
            Compared(
                first,
                second,
                row.slice,
                row.metric,
                _figure(
                    found[second, row.slice, row.metric].figure.mean - row.figure.mean,
                    self.draws[second, row.slice, row.metric] - self.draws[first, row.slice, row.metric],
                ),
                row.positives,
            )
            for row in self.rows
            if row.ranker == first
        ]


def measure(
    impressions: Impressions,
    scores: Mapping[str, npt.NDArray[np.float32]],
    *,
    group_by: GroupBy = "request",
    seed: int = 0,
) -> Measurements:
    """`scores`: by ranker, float32 [S, n], higher is better. Labels are those of the first task."""
    users, of_row = np.unique(np.array(impressions.user_ids)[impressions.row_requests], return_inverse=True)
    times_BU = np.stack(list(user_draws(len(users), seed=seed)))
    labels = impressions.labels[:, 0]
    groups = _groups(impressions, group_by)
    rows: list[Measured] = []
    draws: dict[tuple[str, str, str], Values] = {}
    for name, days in SLICES.items():
        chosen = np.flatnonzero(impressions.ages_days < days)
        for ranker, by_seed in scores.items():
            for metric, values, drawn, many in (
                ("AUC", *_auc_figures(by_seed[:, chosen], labels[chosen], of_row[chosen], times_BU)),
                ("HIT@3", *_hit_figures(by_seed, labels, groups, chosen, of_row, times_BU)),
            ):
                draws[ranker, name, metric] = drawn
                figure = _figure(float(values.mean()), drawn)
                positives = int(labels[chosen].sum()) if metric == "AUC" else many[1]
                shown = len(chosen) if metric == "AUC" else many[2]
                rows.append(Measured(ranker, name, metric, figure, shown, positives, many[0]))
    return Measurements(tuple(rows), draws)


def group_hits(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.floating], groups: npt.NDArray[np.int64]
) -> tuple[Values, npt.NDArray[np.int64]]:
    """HIT@3 of each group, float64 [G], and one row of each group, int64 [G]. Only groups with at least five
    candidates, a positive and a negative count. Ties are ordered at random: HIT@3 is the probability that a positive
    is among the three highest."""
    order = np.lexsort((-scores, groups))
    bounds = np.flatnonzero(np.append(True, np.diff(groups[order]) != 0))
    hits, rows = [], []
    for members in np.split(order, bounds[1:]):
        wanted = labels[members]
        if len(members) >= MIN_CANDIDATES and 0 < wanted.sum() < len(members):
            hits.append(_hit(scores[members], wanted))
            rows.append(members[0])
    return np.array(hits, np.float64), np.array(rows, np.int64)


def _hit(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> float:
    """The probability of a hit in one group, whose scores are descending."""
    last = scores[TOP - 1]
    above, tied = scores > last, scores == last
    if labels[above].any():
        return 1.0
    places, size, positives = TOP - int(above.sum()), int(tied.sum()), int(labels[tied].sum())
    missed = 1.0
    for k in range(places):
        missed *= max(size - positives - k, 0) / (size - k)
    return 1.0 - missed


def _groups(impressions: Impressions, group_by: GroupBy) -> npt.NDArray[np.int64]:
    """int64 [n]: the group of each row."""
    requests = impressions.row_requests
    if group_by == "request":
        return requests
    users = np.unique(np.array(impressions.user_ids), return_inverse=True)[1].astype(np.int64)
    weeks = impressions.times_ms // (7 * DAY_MS)
    return (users * (int(weeks.max(initial=0)) + 1) + weeks)[requests]


def _auc_figures(
    scores_Sn: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    users: npt.NDArray[np.int64],
    times_BU: Values,
) -> tuple[Values, Values, tuple[int, int, int]]:
    presorted = [SortedScores.of(scores, labels) for scores in scores_Sn]
    values = np.array([one.auc() for one in presorted])
    drawn = np.array([np.mean([one.auc(times[users]) for one in presorted]) for times in times_BU], np.float64)
    return values, drawn, (0, 0, 0)


def _hit_figures(
    scores_Sn: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    groups: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    users: npt.NDArray[np.int64],
    times_BU: Values,
) -> tuple[Values, Values, tuple[int, int, int]]:
    by_seed = [group_hits(scores[chosen], labels[chosen], groups[chosen]) for scores in scores_Sn]
    rows = chosen[by_seed[0][1]]
    if not len(rows):
        nothing = np.full(1, np.nan)
        return nothing, np.full(len(times_BU), np.nan), (0, 0, 0)
    # group_hits returns groups in the order of their numbers, so all seeds have the same order.
    hits = np.mean([found for found, _ in by_seed], axis=0)
    weights = times_BU[:, users[rows]]
    inside = np.isin(groups[chosen], groups[rows])
    counts = (len(rows), int(labels[chosen][inside].sum()), int(inside.sum()))
    with np.errstate(invalid="ignore"):
        return np.array([hits.mean()]), weights @ hits / weights.sum(1), counts


def _figure(mean: float, drawn: Values) -> Estimate:
    known = drawn[np.isfinite(drawn)]
    if not len(known) or not np.isfinite(mean):
        return Estimate(float("nan"), float("nan"), float("nan"))
    return Estimate(float(mean), *interval(known))
