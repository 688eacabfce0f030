"""Ranks the user's own items first, the most recent at the top; all others by popularity.

With seen items filtered, it equals popularity.
"""

from __future__ import annotations

import numpy as np

from spoor.encoder.baselines.popularity import below_one
from spoor.encoder.evaluation.questions import Inputs
from spoor.encoder.evaluation.scoring import Scores, Training


class Recent:
    def prepare(self, training: Training) -> None:
        self._popularity_V = below_one(training.popularity())

    def scores(self, inputs: Inputs) -> Scores:
        scores = np.tile(self._popularity_V, (inputs.count, 1))
        rows = np.repeat(np.arange(inputs.count), inputs.histories.lengths)
        place = np.arange(len(inputs.items)) - inputs.offsets[rows]
        known = inputs.items > 0
        # Inputs are oldest first, so a repeated item keeps its newest position.
        scores[rows[known], inputs.items[known] - 1] = 1 + place[known]
        return scores

    def describe(self) -> str:
        return "the user's items, most recent first, then popularity"
