import numpy as np
import pytest
import torch

from spoor.base.errors import DataError
from spoor.ranking.features.dataset import Inputs
from spoor.ranking.ranker.ranker import RankerConfig, train_ranker

CONFIG = RankerConfig(epochs=30, batch_rows=64, learning_rate=1e-2)


def toy(rows: int = 400, seed: int = 0) -> tuple[Inputs, np.ndarray]:
    """The label is the sign of the first feature; the second group is null in half of the rows."""
    chance = np.random.default_rng(seed)
    values = chance.normal(size=(rows, 3)).astype(np.float32)
    labels = (values[:, 0] > 0).astype(np.float32)
    values[::2, 1:] = np.nan
    values[:, 0] = values[:, 0] * 1000 + 5
    return Inputs(values, (slice(0, 1), slice(1, 3))), labels


def test_it_learns_what_the_features_tell():
    inputs, labels = toy()
    ranker = train_ranker(inputs, labels, CONFIG)
    unseen, truth = toy(seed=1)
    scores = ranker.score(unseen)
    assert scores.shape == (400,) and scores.dtype == np.float32
    assert ((scores > 0) == (truth > 0)).mean() > 0.95


def test_the_same_seed_gives_the_same_ranker_and_leaves_the_random_state_alone():
    inputs, labels = toy()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = train_ranker(inputs, labels, CONFIG).score(inputs)
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(first, train_ranker(inputs, labels, CONFIG).score(inputs))
    other = RankerConfig(epochs=30, batch_rows=64, learning_rate=1e-2, seed=1)
    assert not np.array_equal(first, train_ranker(inputs, labels, other).score(inputs))


def test_being_null_is_a_feature():
    inputs, _ = toy()
    labels = np.isnan(inputs.values[:, 1]).astype(np.float32)
    scores = train_ranker(inputs, labels, CONFIG).score(inputs)
    assert ((scores > 0) == (labels > 0)).mean() > 0.95


def test_a_column_without_any_value_and_values_far_outside_give_finite_scores():
    inputs, labels = toy()
    inputs.values[:, 2] = np.nan
    ranker = train_ranker(inputs, labels, CONFIG)
    wild = Inputs(np.full((3, 3), 1e30, np.float32), inputs.groups)
    assert np.isfinite(ranker.score(wild)).all()


def test_a_score_depends_on_its_row_alone():
    inputs, labels = toy()
    ranker = train_ranker(inputs, labels, CONFIG)
    one = Inputs(inputs.values[17:18], inputs.groups)
    np.testing.assert_allclose(ranker.score(one), ranker.score(inputs)[17:18], rtol=1e-5)
    assert ranker.score(Inputs(inputs.values[:0], inputs.groups)).shape == (0,)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_of_one_kind_are_an_error(label):
    inputs, labels = toy()
    with pytest.raises(DataError, match="cannot train"):
        train_ranker(inputs, np.full_like(labels, label), CONFIG)


def test_inputs_of_another_layout_are_an_error():
    inputs, labels = toy()
    ranker = train_ranker(inputs, labels, CONFIG)
    with pytest.raises(DataError, match="trained on 3 features, found 2"):
        ranker.score(Inputs(inputs.values[:, :2], (slice(0, 1), slice(1, 2))))
