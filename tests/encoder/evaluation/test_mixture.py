from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from spoor.base.errors import DataError
from spoor.encoder.data.item_links import ItemLinks
from spoor.encoder.evaluation.mixture import SMALL_LINK, Asked, Mixture, MixtureWeights

ITEMS = 30


def _histories(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = rng.integers(1, 8, users)
    return rng.integers(0, ITEMS + 1, lengths.sum()), np.concatenate([[0], np.cumsum(lengths)])


def _links(seed: int = 0) -> ItemLinks:
    return ItemLinks.count([_histories(np.random.default_rng(seed), 50)], vocabulary_size=ITEMS)


def _asked(weights: MixtureWeights, users: int, *, seed: int = 1) -> Asked:
    """Targets drawn from the mixture itself."""
    rng = np.random.default_rng(seed)
    items, offsets = _histories(rng, users)
    vector = rng.normal(size=(users, ITEMS)).astype(np.float32)
    scores = Mixture(_links(), weights).scores(vector, items, offsets)
    drawn = np.argmax(scores + rng.gumbel(size=scores.shape), axis=1) + 1
    return Asked(vector, items, offsets, drawn)


def test_scores_are_the_formula_item_by_item():
    weights = MixtureWeights(vector=2.0, link=3.0, log_link=0.5, popular=0.3, had=-1.0, times=0.7, recent=1.5)
    links = _links()
    rng = np.random.default_rng(2)
    items, offsets = _histories(rng, 5)
    vector = rng.normal(size=(5, ITEMS)).astype(np.float32)
    found = Mixture(links, weights).scores(vector, items, offsets)
    link = links.scores(items, offsets)
    for user in range(5):
        history = items[offsets[user] : offsets[user + 1]].tolist()
        for item in range(1, ITEMS + 1):
            expected = 2.0 * vector[user, item - 1] + 3.0 * link[user, item]
            expected += 0.5 * np.log1p(link[user, item] / SMALL_LINK)
            expected += 0.3 * np.log1p(links.events[item])
            if item in history:
                since = history[::-1].index(item)
                expected += -1.0 + 0.7 * np.log(history.count(item)) + 1.5 / (1 + since)
            assert found[user, item - 1] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_fitting_finds_the_weights_that_made_the_choices():
    made = MixtureWeights(vector=1.5, link=4.0, had=1.0, times=0.5, recent=2.0)
    fitted = Mixture.fit(_links(), [_asked(made, 3000), _asked(made, 3000, seed=2)], seen="kept").weights
    assert fitted.vector == pytest.approx(1.5, abs=0.15)
    assert fitted.had == pytest.approx(1.0, abs=0.5)
    assert fitted.recent == pytest.approx(2.0, abs=0.6)
    linked = [weights.link + weights.log_link / SMALL_LINK for weights in (made, fitted)]
    assert np.sign(linked[0]) == np.sign(linked[1])


def test_filtered_fitting_asks_only_for_what_the_user_had_not():
    asked = _asked(MixtureWeights(had=8.0), 500)
    fitted = Mixture.fit(_links(), [asked], seen="filtered").weights
    assert (fitted.had, fitted.times, fitted.recent) == (0.0, 0.0, 0.0)


def test_nothing_to_fit_on_leaves_the_user_vector_alone():
    nothing = dataclasses.replace(_asked(MixtureWeights(), 3), targets=np.zeros(3, np.int64))
    assert Mixture.fit(_links(), [], seen="kept").weights == MixtureWeights()
    assert Mixture.fit(_links(), [nothing], seen="kept").weights == MixtureWeights()


def test_bytes_bring_the_mixture_back():
    mixture = Mixture(_links(), MixtureWeights(link=2.5))
    again = Mixture.from_bytes(mixture.to_bytes(), vocabulary_size=ITEMS)
    assert again.weights == mixture.weights
    np.testing.assert_array_equal(again.links.matrix.toarray(), mixture.links.matrix.toarray())


@pytest.mark.parametrize("damage", [b"", b"\x00" * 20, b"not a file at all"])
def test_damaged_bytes_are_refused(damage: bytes):
    with pytest.raises(DataError, match="cannot be read"):
        Mixture.from_bytes(damage, vocabulary_size=ITEMS)


def test_a_good_vector_keeps_its_weight_where_most_targets_are_far_from_the_best():
    """With many more items than candidates, a target in the tail must not count against high scores."""
    rng = np.random.default_rng(3)
    users, items = 400, 3000
    vector = rng.normal(size=(users, items)).astype(np.float32)
    targets = np.argmax(vector + rng.gumbel(size=vector.shape), axis=1) + 1
    links = ItemLinks.count([(np.array([1, 2]), np.array([0, 2]))], vocabulary_size=items)
    asked = Asked(vector, np.ones(users, np.int64), np.arange(users + 1), targets)
    assert Mixture.fit(links, [asked], seen="filtered").weights.vector == pytest.approx(1.0, abs=0.25)


def test_popularity_is_found_where_nothing_else_decides():
    rng = np.random.default_rng(4)
    events = np.repeat(np.arange(1, ITEMS + 1), np.arange(1, ITEMS + 1) ** 2)
    links = ItemLinks.count([(events, np.arange(len(events) + 1))], vocabulary_size=ITEMS)
    targets = rng.choice(events, 3000)
    noise = rng.normal(size=(3000, ITEMS)).astype(np.float32)
    asked = Asked(noise, np.zeros(3000, np.int64), np.arange(3001), targets)
    weights = Mixture.fit(links, [asked], seen="kept").weights
    assert weights.popular == pytest.approx(1.0, abs=0.15)
    assert weights.vector == pytest.approx(0.0, abs=0.1)
