"""A release as a scorer: the transformer alone, and with the release's mixture.

The transformer's score is the user vector times the item vector, which a consumer of the vectors in Feast can compute.
A mixture (encoder/evaluation/mixture.py) adds sparse item links and the user's own history.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from spoor.base.errors import DataError
from spoor.encoder.evaluation.mixture import FILE as MIXTURE_FILE
from spoor.encoder.evaluation.mixture import Mixture
from spoor.encoder.evaluation.questions import Inputs
from spoor.encoder.evaluation.scoring import Scorer, Scores, Training
from spoor.encoder.release.folder import BEFORE_REFIT_FILE, Release, kept_file
from spoor.encoder.release.inference import FrozenEncoder

RELEASE, TRANSFORMER, BEFORE_REFIT = "release", "transformer", "before-refit"


def release_scorers(release: Release) -> dict[str, Scorer]:
    """RELEASE: the release with its mixture, if it has one; TRANSFORMER: its user vector alone, if it has a mixture;
    BEFORE_REFIT: the user vector of the weights before the refit on validation events, if the release keeps them.

    Raises DataError for weights or a mixture that do not fit, InfrastructureError if a file cannot be read.
    """
    vectors = _VectorScores(FrozenEncoder(release))
    scorers: dict[str, Scorer] = {RELEASE: ReleaseScorer(vectors)}
    mixture = kept_file(release.info.folder, MIXTURE_FILE)
    if mixture is not None:
        added = Mixture.from_bytes(mixture, vocabulary_size=len(release.vocabulary.items))
        scorers = {RELEASE: ReleaseScorer(vectors, added), TRANSFORMER: ReleaseScorer(vectors)}
    weights = kept_file(release.info.folder, BEFORE_REFIT_FILE)
    if weights is not None:
        try:
            earlier = replace(release, weights=safetensors_numpy.load(weights))
        except (ValueError, SafetensorError) as error:
            raise DataError(f"{BEFORE_REFIT_FILE} cannot be read: {error}", hint="train the release again") from None
        scorers[BEFORE_REFIT] = ReleaseScorer(_VectorScores(FrozenEncoder(earlier)))
    return scorers


class ReleaseScorer:
    """Scores the items of the release's vocabulary, which must be the ranked vocabulary."""

    def __init__(self, vectors: _VectorScores, mixture: Mixture | None = None) -> None:
        self._vectors = vectors
        self._mixture = mixture

    def prepare(self, training: Training) -> None:
        """Fits nothing: a release is frozen. Raises ValueError for a vocabulary of another size."""
        known = len(self._vectors.encoder.item_hashes)
        if training.vocabulary_size != known:
            raise ValueError(f"the release knows {known} items, {training.vocabulary_size} are ranked")

    def scores(self, inputs: Inputs) -> Scores:
        scores = self._vectors.scores(inputs)
        return scores.copy() if self._mixture is None else self._mixture.scores(scores, inputs.items, inputs.offsets)

    def describe(self) -> str:
        encoder = self._vectors.encoder
        added = "" if self._mixture is None else ", item links and the user's own history added"
        return f"{encoder.release}: {encoder.dimension} dimensions, newest {encoder.max_events} events{added}"


class _VectorScores:
    """User vectors times item vectors over the temperature; caches the last result, which two scorers share."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        self.encoder = encoder
        self._items_VE = encoder.item_vectors(encoder.item_hashes)
        self._temperature = float(encoder.model.temperature)
        self._last: tuple[Inputs, Scores] | None = None

    def scores(self, inputs: Inputs) -> Scores:
        if self._last is None or self._last[0] is not inputs:
            vectors, _ = self.encoder.encode(inputs.histories)
            self._last = inputs, (vectors @ self._items_VE.T / self._temperature).astype(np.float32)
        return self._last[1]
