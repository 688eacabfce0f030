import math
from typing import Any

import numpy as np
import pytest

from spoor.base.errors import DataError
from spoor.ranking.features.online import feast_reader
from spoor.ranking.ranker.lift import METRICS, Lift, estimates, measure_lift, request_metrics
from spoor.ranking.ranker.measure import Estimate
from spoor.ranking.settings import FinetuneSettings
from tests.ranking.world import DAY, RELEASE, START, World

SETTINGS = FinetuneSettings(epochs=40, patience=0, batch_rows=64, learning_rate=1e-2)


def by_hand(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))[:10]
    relevant = int(labels.sum())
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(relevant, 10)))
    pairs = [(p, n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return {
        "NDCG@10": sum(labels[k] / math.log2(rank + 2) for rank, k in enumerate(order)) / ideal,
        "Recall@10": sum(labels[k] for k in order) / min(relevant, 10),
        "AUC": sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs),
    }


@pytest.mark.parametrize(("size", "relevant"), [(2, 1), (7, 3), (60, 1), (60, 25)])
def test_metrics_equal_their_definitions_with_ties(size, relevant):
    chance = np.random.default_rng(size)
    for _ in range(20):
        scores = chance.integers(0, 6, size).astype(np.float32)
        labels = np.zeros(size, np.float32)
        labels[chance.choice(size, relevant, replace=False)] = 1
        assert request_metrics(scores, labels) == pytest.approx(by_hand(scores, labels))


def test_what_cannot_be_measured_is_nan():
    assert all(math.isnan(v) for v in request_metrics(np.ones(3), np.zeros(3)).values())
    assert math.isnan(request_metrics(np.ones(3), np.ones(3))["AUC"])


def bootstrap(values: np.ndarray, *, seed: int = 0) -> Estimate:
    return estimates(values[:, None], seed=seed)[0]


def test_the_interval_holds_the_mean_and_shrinks_with_users():
    chance = np.random.default_rng(0)
    few, many = bootstrap(chance.normal(size=20)), bootstrap(chance.normal(size=2000))
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low
    assert bootstrap(np.array([0.5])).low == 0.5


def test_an_interval_covers_the_truth_about_95_times_in_a_hundred():
    chance = np.random.default_rng(1)
    estimates = [bootstrap(chance.exponential(size=80), seed=k) for k in range(200)]
    assert 0.88 <= np.mean([e.low <= 1 <= e.high for e in estimates]) <= 0.99


def measured(world: World, **options: Any) -> Lift:
    return measure_lift(
        world.events,
        world.items,
        feast_reader(world.features, RELEASE),
        train_ms=(START + 21 * DAY, START + 32 * DAY),
        test_ms=(START + 32 * DAY, START + 40 * DAY),
        positive_actions=["like"],
        settings=SETTINGS,
        **options,
    )


@pytest.fixture(scope="module")
def lift(world: World) -> Lift:
    return measured(world, seeds=(0, 1))


def row_of(table, subset: str, metric: str):
    return next(row for row in table.rows if (row.subset, row.metric) == (subset, metric))


def test_an_embedding_that_knows_the_taste_lifts_those_who_have_one(lift):
    known = row_of(lift.table, "user had an embedding", "AUC")
    assert known.difference.low > 0 and known.verdict == "better with the embedding"
    unknown = row_of(lift.table, "user had none yet", "AUC")
    assert abs(unknown.difference.mean) < known.difference.mean / 3


def test_the_table_says_what_it_measured(lift):
    table = lift.table
    assert {row.metric for row in table.rows} == set(METRICS)
    assert table.seeds == 2 and table.train_rows > table.train_requests > 0
    assert 0 < table.test_covered < 1 and 0 < table.train_covered < 1
    everyone = row_of(table, "all requests", "NDCG@10")
    parts = [row_of(table, s, "NDCG@10").requests for s in ("user had an embedding", "user had none yet")]
    assert everyone.requests == table.test_requests == sum(parts)
    for row in table.rows:
        gap = row.with_embedding.mean - row.without_embedding.mean
        assert row.difference.mean == pytest.approx(gap)


def test_a_span_without_a_visit_is_an_error(world: World):
    with pytest.raises(DataError, match="the test span"):
        measure_lift(
            world.events,
            world.items,
            feast_reader(world.features, RELEASE),
            train_ms=(START, START + 32 * DAY),
            test_ms=(START + 90 * DAY, START + 99 * DAY),
        )


def test_too_many_rows_are_sampled_and_it_says_of_how_many(world: World, lift) -> None:
    said: list[str] = []
    sampled = measured(
        world,
        seeds=(0,),
        most_training_rows=lift.table.train_rows // 2,
        most_test_rows=lift.table.test_rows // 2,
        progress=said.append,
    ).table
    whole = lift.table
    assert whole.sampled == "" and whole.test_requests == whole.test_requests_found
    assert 0 < sampled.test_rows <= whole.test_rows // 2 and 0 < sampled.train_rows <= whole.train_rows // 2
    assert sampled.test_requests_found == whole.test_requests > sampled.test_requests
    expected = f"{sampled.test_requests:,} of {whole.test_requests:,} (a random sample, seed {SETTINGS.seed}"
    assert expected in said[1] and "training requests and" in sampled.sampled
