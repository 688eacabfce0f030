from __future__ import annotations

import numpy as np
import pytest

from spoor.base.errors import DataError
from spoor.encoder.data import item_links
from spoor.encoder.data.item_links import AGE_DECAY, BACKWARD, GAP_DECAY, LONGEST_GAP, POPULARITY, ItemLinks


def _jagged(*histories: list[int]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(history) for history in histories]
    return np.concatenate([np.array(history, np.int64) for history in histories]), np.cumsum([0, *lengths])


def _slowly(histories: list[list[int]], size: int) -> np.ndarray:
    before = np.zeros((size + 1, size + 1))
    seen = np.zeros(size + 1)
    for history in histories:
        for place, item in enumerate(history):
            seen[item] += 1
            for gap in range(1, LONGEST_GAP + 1):
                other = history[place + gap] if place + gap < len(history) else 0
                if item and other and other != item:
                    before[item, other] += GAP_DECAY ** (gap - 1)
    scale = np.maximum(seen, 1) ** -POPULARITY
    return scale[:, None] * (before + BACKWARD * before.T) * scale


@pytest.mark.parametrize("rows_at_once", [1, 5, 12, 4096])
def test_links_are_what_a_loop_over_all_pairs_counts(monkeypatch: pytest.MonkeyPatch, rows_at_once: int):
    monkeypatch.setattr(item_links, "_ROWS_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 12, length).tolist() for length in (0, 1, 2, 3, 9, 20)]
    links = ItemLinks.count([_jagged(*histories)], vocabulary_size=11)
    np.testing.assert_allclose(links.matrix.toarray(), _slowly(histories, 11), rtol=1e-5)


def test_the_strongest_links_of_each_item_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(item_links, "_MOST_PER_ITEM", 2)
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 12, 20).tolist() for _ in range(5)]
    kept, slowly = ItemLinks.count([_jagged(*histories)], vocabulary_size=11).matrix.toarray(), _slowly(histories, 11)
    for item in range(1, 12):
        strongest = np.sort(slowly[item])[-2:]
        np.testing.assert_allclose(np.sort(kept[item])[-2:], strongest, rtol=1e-5)
        assert (kept[item] > 0).sum() == 2


def test_blocks_of_users_add_up():
    histories = [[1, 2, 3], [3, 1], [2, 2, 1]]
    whole = ItemLinks.count([_jagged(*histories)], vocabulary_size=3)
    parts = ItemLinks.count([_jagged(*histories[:1]), _jagged(*histories[1:])], vocabulary_size=3)
    np.testing.assert_allclose(whole.matrix.toarray(), parts.matrix.toarray(), rtol=1e-6)


def test_unknown_items_are_linked_to_nothing():
    links = ItemLinks.count([_jagged([1, 0, 2, 0])], vocabulary_size=2)
    assert links.matrix.toarray()[0].tolist() == [0, 0, 0]
    assert links.matrix.toarray()[:, 0].tolist() == [0, 0, 0]
    assert links.matrix[1, 2] > 0


def test_newer_events_count_more():
    links = ItemLinks.count([_jagged([1, 3], [2, 4])], vocabulary_size=4)
    scores = links.scores(*_jagged([1, 2], [], [2]))
    assert scores[0, 3] == pytest.approx(AGE_DECAY * scores[0, 4])
    assert scores[1].tolist() == [0, 0, 0, 0, 0]
    assert scores[2, 4] == pytest.approx(scores[0, 4])


def test_factors_of_items_that_are_linked_alike_point_alike():
    groups = [[item for item in range(group, 40, 4) if item] for group in range(4)]
    rng = np.random.default_rng(1)
    histories = [rng.permutation(group).tolist() for group in groups for _ in range(20)]
    factors = ItemLinks.count([_jagged(*histories)], vocabulary_size=39).factors(16, seed=0)
    assert factors.shape == (40, 16)
    np.testing.assert_allclose(np.linalg.norm(factors, axis=1), 1, rtol=1e-5)
    likeness = factors @ factors.T
    same = np.mod.outer(np.arange(1, 40), 4).ravel()
    alike = same[:, None] == same
    inside, across = likeness[1:, 1:][alike].mean(), likeness[1:, 1:][~alike].mean()
    assert inside > across + 0.3


@pytest.mark.parametrize("histories", [[[]], [[1]], [[1, 2]]])
def test_factors_exist_for_the_smallest_catalogues(histories: list[list[int]]):
    factors = ItemLinks.count([_jagged(*histories)], vocabulary_size=2).factors(8, seed=0)
    assert factors.shape == (3, 8)
    assert np.isfinite(factors).all()


def test_factors_depend_on_the_seed_alone():
    links = ItemLinks.count([_jagged([1, 2, 3, 4], [2, 4, 1])], vocabulary_size=4)
    np.testing.assert_array_equal(links.factors(4, seed=3), links.factors(4, seed=3))


def test_arrays_bring_the_links_back():
    links = ItemLinks.count([_jagged([1, 2, 3, 1])], vocabulary_size=3)
    again = ItemLinks.from_arrays(links.arrays(), vocabulary_size=3)
    np.testing.assert_array_equal(again.matrix.toarray(), links.matrix.toarray())


def test_links_of_another_catalogue_are_refused():
    arrays = ItemLinks.count([_jagged([1, 2, 3, 1])], vocabulary_size=3).arrays()
    with pytest.raises(DataError, match="no links of 2 items"):
        ItemLinks.from_arrays(arrays, vocabulary_size=2)
