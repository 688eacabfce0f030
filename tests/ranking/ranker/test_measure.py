from dataclasses import replace

import numpy as np
import pytest

from spoor.encoder.evaluation.auc import auc
from spoor.ranking.features.impressions import DAY_MS, Impressions
from spoor.ranking.ranker.measure import CLAIM_POSITIVES, group_hits, measure


def auc_by_hand(scores, labels, weights):
    total = wins = 0.0
    for p, n in ((p, n) for p in np.flatnonzero(labels > 0) for n in np.flatnonzero(labels == 0)):
        pair = weights[p] * weights[n]
        total += pair
        wins += pair * (1.0 if scores[p] > scores[n] else 0.5 if scores[p] == scores[n] else 0.0)
    return wins / total


@pytest.mark.parametrize("size", [2, 7, 60])
def test_auc_equals_its_definition_with_ties_and_weights(size):
    chance = np.random.default_rng(size)
    for _ in range(10):
        scores, weights = chance.integers(0, 5, size).astype(np.float32), chance.integers(1, 4, size)
        labels = np.zeros(size, np.float32)
        labels[chance.choice(size, max(size // 3, 1), replace=False)] = 1
        assert auc(scores, labels, weights) == pytest.approx(auc_by_hand(scores, labels, weights))
        assert auc(scores, labels) == pytest.approx(auc_by_hand(scores, labels, np.ones(size)))


@pytest.mark.parametrize("labels", [[], [1, 1], [0]])
def test_auc_of_one_kind_of_label_is_nan(labels):
    assert np.isnan(auc(np.arange(len(labels), dtype=np.float32), np.array(labels, np.float32)))


def test_hits_are_counted_in_groups_of_five_with_both_labels():
    groups = np.repeat([4, 7, 9, 11], [5, 4, 6, 5])
    labels = np.zeros(20, np.float32)
    labels[[4, 6, 9, 10]] = 1  # the last group has none, group 7 is too small
    hits, rows = group_hits(-np.arange(20, dtype=np.float32), labels, groups)
    assert hits.tolist() == [0.0, 1.0]  # its fifth place; first and second
    assert groups[rows].tolist() == [4, 9]


def test_equal_scores_count_with_their_chance():
    labels = np.array([1, 0, 0, 0, 0], np.float32)
    assert group_hits(np.zeros(5, np.float32), labels, np.zeros(5, np.int64))[0] == pytest.approx([3 / 5])
    two = np.array([0, 1, 1, 0, 0], np.float32)
    scores = np.array([9, 0, 0, 0, 0], np.float32)  # two places left for four, of which two are wanted
    assert group_hits(scores, two, np.zeros(5, np.int64))[0] == pytest.approx([1 - (2 / 4) * (1 / 3)])


def impressions_of(users: int, *, seed: int = 0) -> Impressions:
    chance = np.random.default_rng(seed)
    rows = users * 6
    return Impressions(
        user_ids=tuple(f"u{k:03d}" for k in range(users)),
        surfaces=("app",) * users,
        times_ms=np.arange(users) * DAY_MS,
        offsets=np.arange(users + 1) * 6,
        item_ids=tuple(f"i{k}" for k in range(rows)),
        labels=(chance.random((rows, 1)) < 0.4).astype(np.float32),
        ages_days=chance.choice([1.0, 10.0, 100.0], rows).astype(np.float32),
        tasks=("engaged",),
    )


def test_better_scores_are_better_and_chance_is_not():
    found = impressions_of(150)
    chance = np.random.default_rng(1)
    noise = chance.random((2, len(found.item_ids))).astype(np.float32)
    scores = {"noise": noise, "other noise": noise[::-1].copy(), "good": noise + found.labels[:, 0]}
    measured = measure(found, scores)
    rows = {(row.ranker, row.slice, row.metric): row for row in measured.rows}
    top = rows["good", "all items", "AUC"]
    assert top.figure.mean == 1.0 and top.impressions == 900 and top.positives == found.labels.sum()
    young = rows["noise", "younger than 7 days", "AUC"]
    assert young.impressions == (found.ages_days < 7).sum()
    assert young.figure.low < 0.5 < young.figure.high
    verdicts = {(c.slice, c.metric): c.verdict for c in measured.compare("noise", "good")}
    assert verdicts["all items", "AUC"] == verdicts["all items", "HIT@3"] == "better"
    assert verdicts["younger than 7 days", "AUC"].startswith("no claim")
    other = {(c.slice, c.metric): c.verdict for c in measured.compare("noise", "other noise")}
    assert other["all items", "AUC"] == "no difference shown"  # the same two seeds in another order
    assert rows["good", "all items", "HIT@3"].positives < CLAIM_POSITIVES * 10


def test_groups_may_be_weeks_of_a_user():
    found = replace(impressions_of(4), user_ids=("u",) * 4, times_ms=np.array([0, 1, 8, 9]) * DAY_MS)
    scores = {"any": np.random.default_rng(0).random((1, 24)).astype(np.float32)}
    by_request, by_week = (measure(found, scores, group_by=kind) for kind in ("request", "user-week"))
    groups = [row.groups for m in (by_request, by_week) for row in m.rows if row.metric == "HIT@3"]
    assert groups[0] == 4 and groups[3] == 2


def test_an_empty_slice_is_not_a_number():
    found = replace(impressions_of(3), ages_days=np.full(18, 99.0, np.float32))
    measured = measure(found, {"any": np.zeros((1, 18), np.float32)})
    young = [row for row in measured.rows if row.slice != "all items"]
    assert all(np.isnan(row.figure.mean) and row.positives == 0 for row in young)
