"""Ranks items by their number of events, equally for every user."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spoor.encoder.evaluation.questions import Inputs
from spoor.encoder.evaluation.scoring import Scores, Training


class Popularity:
    def prepare(self, training: Training) -> None:
        self._events_V = training.popularity().astype(np.float32)

    def scores(self, inputs: Inputs) -> Scores:
        return np.tile(self._events_V, (inputs.count, 1))

    def describe(self) -> str:
        return "events of the item"


def below_one(popularity: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32[V] in [0, 1), increasing with popularity: breaks ties of integer scores."""
    return (popularity / (popularity.max(initial=0) + 1)).astype(np.float32)
