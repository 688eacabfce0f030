"""Places against sorting, metrics against their formulas."""

import numpy as np
import pytest
import torch

from spoor.encoder.evaluation.metrics import (
    METRICS,
    TOP,
    coverage,
    leave_out_seen,
    per_question,
    popularity_share,
    target_places,
    top_items,
)


def test_places_equal_the_mean_place_over_both_orders_of_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (40, 25)).astype(np.float32)
    targets = rng.integers(1, 26, 40)
    expected = []
    for row, target in zip(scores, targets, strict=True):
        others = np.delete(row, target - 1)
        own = row[target - 1]
        expected.append(((others > own).sum() + (others >= own).sum()) / 2)
    assert target_places(torch.from_numpy(scores), targets).tolist() == expected


def test_equal_scores_for_everything_are_no_hit() -> None:
    assert target_places(torch.zeros(1, 1001), np.array([7])).tolist() == [500]


def test_an_unknown_or_filtered_target_is_never_found() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0]]).repeat(3, 1)
    leave_out_seen(scores, np.array([3, 0, 1]), np.array([0, 1, 2, 3]))
    assert scores.tolist() == [[1, 2, -np.inf], [1, 2, 3], [-np.inf, 2, 3]]
    assert target_places(scores, np.array([3, 0, 2])).tolist() == [np.inf, np.inf, 1]
    assert per_question(np.array([np.inf])).tolist() == [[0] * len(METRICS)]


def test_scores_that_are_no_numbers_are_an_error_and_not_a_hit() -> None:
    scores = torch.zeros(2, 3)
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        target_places(scores, np.array([1, 1]))


@pytest.mark.parametrize("place", [0, 0.5, 4, 4.5, 5, 9, 9.5, 10, 49, 50])
def test_metrics_are_their_formulas(place: float) -> None:
    found = dict(zip(METRICS, per_question(np.array([place]))[0], strict=True))
    for cutoff in (5, 10, 50):
        assert found[f"recall@{cutoff}"] == (place < cutoff)
        assert found[f"ndcg@{cutoff}"] == pytest.approx((place < cutoff) / np.log2(place + 2))


@pytest.mark.parametrize("items", [0, 1, 3, TOP, 30])
def test_top_items_are_the_highest_candidates_and_0_where_there_are_fewer(items: int) -> None:
    rng = np.random.default_rng(items)
    scores = torch.from_numpy(rng.permutation(items).astype(np.float32))[None].clone()
    scores[0, : items // 3] = -torch.inf
    kept = [int(item) + 1 for item in torch.argsort(-scores[0]) if scores[0, item] > -torch.inf][:TOP]
    found = top_items(scores)[0].tolist()
    assert found == kept + [0] * (min(items, TOP) - len(kept))


def test_popularity_share_counts_places_of_the_most_popular_hundredth() -> None:
    popularity = np.arange(200)
    recommended = np.zeros(200, np.int64)
    recommended[[199, 198, 197, 0]] = [5, 1, 3, 1]  # the hundredth: items 199 and 198
    assert popularity_share(recommended, popularity) == 0.6
    assert coverage(recommended) == 4 / 200
    assert popularity_share(recommended[:3] * 0, popularity[:3]) == 0
