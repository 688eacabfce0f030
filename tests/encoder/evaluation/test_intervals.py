"""Bootstrap over users: how wide, and what it knows of a user's own questions and of pairs."""

import numpy as np
import pytest

from spoor.encoder.evaluation.intervals import bootstrap_means, interval, user_sums


def test_sums_are_per_user_in_any_order_of_questions() -> None:
    sums, counts = user_sums(np.array([[1.0, 10], [2, 20], [4, 40]]), np.array([7, 3, 7]))
    assert sums.tolist() == [[2, 20], [5, 50]]
    assert counts.tolist() == [1, 2]


def test_the_interval_of_a_share_has_the_width_of_theory() -> None:
    hits = (np.random.default_rng(1).random(4_000) < 0.1).astype(float)[:, None]
    low, high = interval(bootstrap_means(*user_sums(hits, np.arange(4_000)), seed=0)[:, 0])
    share = hits.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(share * (1 - share) / 4_000), rel=0.1)
    assert low < share < high


def test_questions_of_one_user_are_not_independent() -> None:
    hits = np.repeat((np.random.default_rng(1).random(200) < 0.3).astype(float), 20)[:, None]
    by_user = bootstrap_means(*user_sums(hits, np.repeat(np.arange(200), 20)), seed=0)
    by_question = bootstrap_means(*user_sums(hits, np.arange(4_000)), seed=0)
    assert by_user.std() > 4 * by_question.std()


def test_differences_are_paired() -> None:
    first = (np.random.default_rng(1).random(500) < 0.3).astype(float)
    drawn = bootstrap_means(*user_sums(np.stack([first, first - 0.01], 1), np.arange(500)), seed=3)
    assert interval(drawn[:, 0] - drawn[:, 1]) == pytest.approx((0.01, 0.01))


def test_the_seed_decides_and_nobody_has_no_interval() -> None:
    sums, counts = np.arange(5.0)[:, None], np.ones(5)
    assert np.array_equal(bootstrap_means(sums, counts, seed=1), bootstrap_means(sums, counts, seed=1))
    assert not np.array_equal(bootstrap_means(sums, counts, seed=1), bootstrap_means(sums, counts, seed=2))
    assert interval(bootstrap_means(np.empty((0, 1)), np.empty(0), seed=1)[:, 0]) == (0, 0)
