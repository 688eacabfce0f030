"""ItemKNN: scores items by how often they occur with the user's items in other histories.

    score(u, j) = sum over the user's events i, k steps back, of  decay^k · n(i, j) / sqrt(n(i) · n(j))

n(i, j) counts either `users` with both items (the textbook's cosine), or pairs at most `REACH` events apart in one
history, weighted 1 / distance: `near` in both directions, `after` only i before j. This choice, the decay (1: the
textbook's unweighted history) and, if seen items stay candidates, whether an item is its own neighbour, are selected
by NDCG@10 on the validation events, so that the baseline is the best that counting can do. Each item keeps its
`NEIGHBOURS` nearest items, each user counts with the newest `NEWEST` events, to bound memory and time on large data.

Legend: P questions, V known items, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import sparse

from spoor.base.numbers import number_text
from spoor.encoder.data.item_links import count_pairs
from spoor.encoder.evaluation.questions import Inputs
from spoor.encoder.evaluation.scoring import Scores, Training, mean_ndcg
from spoor.encoder.model.vocabulary import Indexes

Pairs = Literal["users", "near", "after"]
Matrix = Any  # scipy.sparse.csr_array of float32, whose type stubs are incomplete
REACH = 10
NEIGHBOURS = 1_000
NEWEST = 500
DECAYS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_MIDDLING = 0.7
_CHOICE_QUESTIONS = 3_000
_NEGLIGIBLE = 1e-4  # events with a lower weight are left out
_ROWS_AT_ONCE = 2_000
_WORDS = {
    "users": "users in common",
    "near": f"1 / distance up to {REACH} events",
    "after": f"1 / distance up to {REACH} events, forwards",
}


@dataclass(frozen=True)
class KnnSetting:
    pairs: Pairs
    decay: float  # factor of an event's weight per step back
    own: bool  # an item may be its own neighbour


class ItemKnn:
    """`setting`: None selects one on the validation events."""

    def __init__(self, setting: KnnSetting | None = None) -> None:
        self._setting = setting

    def prepare(self, training: Training) -> None:
        setting = self._setting or _choose(training)
        self._setting = setting
        self._similarity = _similarity(training, setting)

    def scores(self, inputs: Inputs) -> Scores:
        assert self._setting is not None, "prepare comes first"
        return _scores(inputs.items, inputs.offsets, self._similarity, self._setting.decay)

    def describe(self) -> str:
        if self._setting is None:
            return "cosine of items, picked on validation"
        own = ", an item its own neighbour" if self._setting.own else ""
        decay = number_text(self._setting.decay)
        return f"cosine of items by {_WORDS[self._setting.pairs]}, weight {decay} per step back{own}"


def _choose(training: Training) -> KnnSetting:
    """Selects the pairs at a medium decay, then the decay: the two are nearly independent."""
    rows = training.validation_rows(at_most=_CHOICE_QUESTIONS)
    if not len(rows):  # the validation events are the questions
        return KnnSetting("after", _MIDDLING, own=training.seen == "kept")
    before = training.before_validation()
    owns = (False, True) if training.seen == "kept" else (False,)
    settings = [KnnSetting(pairs, _MIDDLING, own) for pairs in ("users", "near", "after") for own in owns]
    kept: list[tuple[float, KnnSetting, Matrix]] = []
    for setting in settings:
        similarity = _similarity(before, setting)
        found = mean_ndcg(training, rows, partial(_scores, similarity=similarity, decay=_MIDDLING))
        if not kept or found > kept[0][0]:
            kept = [(found, setting, similarity)]  # keep only the best matrix: they are large
    [(_, best, similarity)] = kept
    found = [mean_ndcg(training, rows, partial(_scores, similarity=similarity, decay=decay)) for decay in DECAYS]
    return replace(best, decay=DECAYS[int(np.argmax(found))])


def _scores(items: Indexes, offsets: Indexes, similarity: Matrix, decay: float) -> Scores:
    """float32[P, V] for P inputs."""
    steps_back = np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(items))
    weights = (decay**steps_back).astype(np.float32)
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    kept = (items > 0) & (weights >= _NEGLIGIBLE)
    shape = (len(offsets) - 1, similarity.shape[0])
    history = sparse.csr_array((weights[kept], (rows[kept], items[kept] - 1)), shape=shape)
    return (history @ similarity).toarray()


def _similarity(training: Training, setting: KnnSetting) -> Matrix:
    """[V, V], row i: the neighbours of item i."""
    if setting.pairs == "users":
        left, right, events = _users_in_common(training)
    else:
        pairs, events = _forward_pairs(training), training.popularity()
        left = pairs if setting.pairs == "after" else (pairs + pairs.T).tocsr()
        right = None
    scale = (1 / np.sqrt(np.maximum(events, 1))).astype(np.float32)
    blocks: list[Matrix] = [sparse.csr_array((0, training.vocabulary_size), dtype=np.float32)]
    for start in range(0, training.vocabulary_size, _ROWS_AT_ONCE):
        block = left[start : start + _ROWS_AT_ONCE]
        counts = (block if right is None else block @ right).tocoo()
        own = counts.row + start
        kept = setting.own | (own != counts.col)
        values = (counts.data * scale[own] * scale[counts.col])[kept]
        blocks.append(_nearest(sparse.csr_array((values, (counts.row[kept], counts.col[kept])), shape=counts.shape)))
    return sparse.vstack(blocks, format="csr")


def _users_in_common(training: Training) -> tuple[Matrix, Matrix, np.ndarray]:
    """[V, U] and [U, V] of ones, whose product counts users with both items; and the number of users per item."""
    kept = _countable(training)
    rows = np.repeat(np.arange(len(training.offsets) - 1), np.diff(training.offsets))[kept]
    shape = (len(training.offsets) - 1, training.vocabulary_size)
    users: Matrix = sparse.csr_array((np.ones(len(rows), np.float32), (rows, training.items[kept] - 1)), shape=shape)
    users.sum_duplicates()
    users.data[:] = 1
    return users.T.tocsr(), users, np.asarray(users.sum(0))


def _forward_pairs(training: Training) -> Matrix:
    """[V, V]: pairs with the column's item after the row's, weighted 1 / distance."""
    items = np.where(_countable(training), training.items, 0)
    weights = [1 / distance for distance in range(1, REACH + 1)]
    size = training.vocabulary_size + 1
    pairs = count_pairs(items, training.offsets, weights=weights, size=size, repeats=True)
    return sparse.csr_array(pairs[1:, 1:])


def _countable(training: Training) -> np.ndarray:
    """bool[N]: events of known items among the newest `NEWEST` of their user."""
    from_end = np.repeat(training.offsets[1:], np.diff(training.offsets)) - np.arange(len(training.items))
    return (training.items > 0) & (from_end <= NEWEST)


def _nearest(similarity: Matrix) -> Matrix:
    similarity.sum_duplicates()
    kept = np.ones(similarity.nnz, bool)
    for row in np.flatnonzero(np.diff(similarity.indptr) > NEIGHBOURS):
        start, end = similarity.indptr[row], similarity.indptr[row + 1]
        far = np.argpartition(similarity.data[start:end], -NEIGHBOURS)[:-NEIGHBOURS]
        kept[start + far] = False
    rows = np.repeat(np.arange(similarity.shape[0]), np.diff(similarity.indptr))[kept]
    return sparse.csr_array((similarity.data[kept], (rows, similarity.indices[kept])), shape=similarity.shape)
