"""Ranks items by how often they came directly after the user's last item; ties by popularity."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from spoor.encoder.baselines.popularity import below_one
from spoor.encoder.evaluation.questions import Inputs
from spoor.encoder.evaluation.scoring import Scores, Training


class Markov:
    def prepare(self, training: Training) -> None:
        size = training.vocabulary_size + 1
        same_user = np.ones(len(training.items), bool)
        same_user[training.offsets[:-1][np.diff(training.offsets) > 0]] = False
        following = np.flatnonzero(same_user)
        pairs = (training.items[following - 1], training.items[following])
        counts = sparse.csr_array((np.ones(len(following), np.float32), pairs), shape=(size, size))
        counts.sum_duplicates()
        self._next = counts
        self._popularity_V = below_one(training.popularity())

    def scores(self, inputs: Inputs) -> Scores:
        last = inputs.items[inputs.offsets[1:] - 1]
        # Row 0 counts what follows any unknown item, which is better than no count.
        return self._next[last].toarray()[:, 1:] + self._popularity_V

    def describe(self) -> str:
        return "transitions from the last item, then popularity"
