"""The pairs of the three losses, against plain loops."""

import numpy as np
import pytest

from spoor.encoder.data.pairs import Pairs, future_token_pairs, multi_token_pairs, next_token_pairs

LENGTHS = [5, 0, 1, 9, 2, 0]
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
SEGMENT = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
POSITIVE = np.random.default_rng(0).random(OFFSETS[-1]) < 0.7
ITEMS = np.arange(OFFSETS[-1]) + 100  # each event has an item of its own


def listed(pairs: Pairs) -> set[tuple[int, int]]:
    found = list(zip(pairs.rows.tolist(), (pairs.items - 100).tolist(), strict=True))
    assert len(found) == len(set(found))
    return set(found)


def later(row: int, window: int) -> set[tuple[int, int]]:
    reachable = range(row + 1, min(row + window, len(SEGMENT) - 1) + 1)
    return {(row, answer) for answer in reachable if SEGMENT[answer] == SEGMENT[row] and POSITIVE[answer]}


def test_next_token_asks_each_event_for_its_target() -> None:
    pairs = next_token_pairs(np.array([107, 0, 103, 0]), weight=2.0)
    assert listed(pairs) == {(0, 7), (2, 3)}
    assert pairs.weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("window", [1, 3, 100])
def test_multi_token_asks_for_every_positive_event_of_the_window(window: int) -> None:
    rng = np.random.default_rng(0)
    pairs = multi_token_pairs(ITEMS, POSITIVE, OFFSETS, window=window, most=10_000, rng=rng, weight=1.0)
    assert listed(pairs) == set().union(*(later(row, window) for row in range(len(SEGMENT))))


def test_multi_token_pairs_are_drawn_evenly() -> None:
    every = listed(
        multi_token_pairs(ITEMS, POSITIVE, OFFSETS, window=4, most=10_000, rng=np.random.default_rng(0), weight=1.0)
    )
    rng, times = np.random.default_rng(1), dict.fromkeys(every, 0)
    for _ in range(2000):
        drawn = multi_token_pairs(ITEMS, POSITIVE, OFFSETS, window=4, most=7, rng=rng, weight=1.0)
        assert len(drawn) == 7
        for pair in listed(drawn):
            times[pair] += 1
    expected = 2000 * 7 / len(every)
    assert min(times.values()) > 0.8 * expected and max(times.values()) < 1.2 * expected


def test_future_token_asks_from_the_served_length() -> None:
    rng = np.random.default_rng(0)
    found = listed(future_token_pairs(ITEMS, POSITIVE, OFFSETS, served_length=4, window=3, rng=rng, weight=1.0))
    assert {pair for pair in found if pair[0] < 5} == later(3, 3)
    assert {pair for pair in found if 6 <= pair[0] < 15} == later(9, 3)


def test_future_token_asks_from_a_drawn_cut_in_shorter_segments() -> None:
    cuts = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        every = np.ones(len(SEGMENT), bool)
        pairs = future_token_pairs(ITEMS, every, OFFSETS, served_length=9, window=2, rng=rng, weight=1.0)
        cuts |= set(pairs.rows.tolist())
        assert set(SEGMENT[pairs.rows].tolist()) == {0, 3, 4}
        assert (SEGMENT[pairs.rows] == SEGMENT[pairs.items - 100]).all()
    assert cuts == {0, 1, 2, 3} | set(range(6, 14)) | {15}


def test_no_event_gives_no_pair() -> None:
    rng = np.random.default_rng(0)
    nothing, none = np.empty(0, np.int64), np.empty(0, bool)
    assert len(next_token_pairs(nothing, weight=1.0)) == 0
    for offsets in (np.array([0]), np.array([0, 0])):
        assert len(multi_token_pairs(nothing, none, offsets, window=2, most=5, rng=rng, weight=1.0)) == 0
        assert len(future_token_pairs(nothing, none, offsets, served_length=2, window=2, rng=rng, weight=1.0)) == 0


def test_joined_pairs_keep_their_weights_and_are_ordered_by_row() -> None:
    one, other = Pairs.of(np.array([0, 1]), np.array([1, 2]), weight=1.0), Pairs.of(np.array([0]), np.array([2]))
    joined = Pairs.join([one, other, Pairs.join([])])
    assert joined.rows.tolist() == [0, 0, 1]
    assert joined.items.tolist() == [1, 2, 2]
    assert joined.weights.tolist() == [0.5, 1.0, 0.5]
