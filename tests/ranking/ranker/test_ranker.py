from dataclasses import replace

import numpy as np
import pytest
import torch

from spoor.base.errors import DataError
from spoor.ranking.features.attributes import AttributeLayout
from spoor.ranking.features.dataset import Inputs
from spoor.ranking.features.impressions import Impressions
from spoor.ranking.ranker.rows import RankingData, no_contexts
from spoor.ranking.ranker.train import train_ranker
from spoor.ranking.ranker.tuned import TunedRanker
from spoor.ranking.settings import FinetuneSettings

SETTINGS = FinetuneSettings(fusion="none", module="frozen", epochs=30, patience=0, batch_rows=64, learning_rate=1e-2)


def toy(rows: int = 400, seed: int = 0) -> tuple[Inputs, np.ndarray]:
    """The label is the sign of the first feature; the second group is null in half of the rows."""
    chance = np.random.default_rng(seed)
    values = chance.normal(size=(rows, 3)).astype(np.float32)
    labels = (values[:, 0] > 0).astype(np.float32)
    values[::2, 1:] = np.nan
    values[:, 0] = values[:, 0] * 1000 + 5
    return Inputs(values, (slice(0, 1), slice(1, 3))), labels


def data_of(inputs: Inputs, labels: np.ndarray) -> RankingData:
    """One row a request, without vectors and attributes."""
    count = len(labels)
    impressions = Impressions(
        user_ids=("u",) * count,
        surfaces=("",) * count,
        times_ms=np.arange(count),
        offsets=np.arange(count + 1),
        item_ids=("i",) * count,
        labels=labels[:, None],
        ages_days=np.zeros(count, np.float32),
        tasks=("engaged",),
    )
    nothing, unknown = np.zeros((count, 0), np.float32), np.zeros((count, 1), np.float32)
    return RankingData(impressions, *no_contexts(impressions), inputs, nothing, AttributeLayout(), unknown, unknown)


def trained(inputs: Inputs, labels: np.ndarray, settings: FinetuneSettings = SETTINGS) -> TunedRanker:
    return train_ranker(data_of(inputs, labels), settings=settings).ranker


def scores_of(ranker: TunedRanker, inputs: Inputs) -> np.ndarray:
    return ranker.score(data_of(inputs, np.zeros(len(inputs.values), np.float32)))[:, 0]


def test_it_learns_what_the_features_tell():
    inputs, labels = toy()
    ranker = trained(inputs, labels)
    unseen, truth = toy(seed=1)
    scores = scores_of(ranker, unseen)
    assert scores.shape == (400,) and scores.dtype == np.float32
    assert ((scores > 0.5) == (truth > 0)).mean() > 0.95


def test_the_same_seed_gives_the_same_ranker_and_leaves_the_random_state_alone():
    inputs, labels = toy()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = scores_of(trained(inputs, labels), inputs)
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(first, scores_of(trained(inputs, labels), inputs))
    other = replace(SETTINGS, seed=1)
    assert not np.array_equal(first, scores_of(trained(inputs, labels, other), inputs))


def test_being_null_is_a_feature():
    inputs, _ = toy()
    labels = np.isnan(inputs.values[:, 1]).astype(np.float32)
    scores = scores_of(trained(inputs, labels), inputs)
    assert ((scores > np.median(scores)) == (labels > 0)).mean() > 0.95


def test_a_column_without_any_value_and_values_far_outside_give_finite_scores():
    inputs, labels = toy()
    inputs.values[:, 2] = np.nan
    ranker = trained(inputs, labels)
    wild = Inputs(np.full((3, 3), 1e30, np.float32), inputs.groups)
    assert np.isfinite(scores_of(ranker, wild)).all()


def test_a_score_depends_on_its_row_alone():
    inputs, labels = toy()
    ranker = trained(inputs, labels)
    one = Inputs(inputs.values[17:18], inputs.groups)
    np.testing.assert_allclose(scores_of(ranker, one), scores_of(ranker, inputs)[17:18], rtol=1e-5)
    assert scores_of(ranker, Inputs(inputs.values[:0], inputs.groups)).shape == (0,)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_of_one_kind_are_an_error(label):
    inputs, labels = toy()
    with pytest.raises(DataError, match="cannot train"):
        trained(inputs, np.full_like(labels, label))


def test_inputs_of_another_layout_are_an_error():
    inputs, labels = toy()
    ranker = trained(inputs, labels)
    with pytest.raises(DataError, match="trained on 3 features and 0 attributes, found 2 and 0"):
        scores_of(ranker, Inputs(inputs.values[:, :2], (slice(0, 1), slice(1, 2))))
