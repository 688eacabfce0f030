"""The area under the ROC curve: the probability that a positive scores above a negative, ties counted half.

Legend: n rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def auc(scores: Floats, labels: Floats, weights: Floats | None = None) -> float:
    """NaN without a positive and a negative. `weights` [n]: how often each row counts; None: once."""
    return SortedScores.of(scores, labels).auc(weights)


@dataclass(frozen=True, eq=False)
class SortedScores:
    """Scores sorted once, to compute the AUC for many weights."""

    order: npt.NDArray[np.int64]
    positive: npt.NDArray[np.bool_]  # in that order
    ties: npt.NDArray[np.int64]  # start of each group of equal scores

    @classmethod
    def of(cls, scores: Floats, labels: Floats) -> SortedScores:
        order = np.argsort(scores, kind="stable")
        ties = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0)[: len(order)])
        return cls(order, labels[order] > 0, ties)

    def auc(self, weights: npt.NDArray[np.number] | None = None) -> float:
        """The function `auc` for these scores."""
        if not len(self.order):
            return float("nan")
        counts = np.ones(len(self.order)) if weights is None else np.asarray(weights, np.float64)[self.order]
        positives = np.add.reduceat(np.where(self.positive, counts, 0.0), self.ties)
        negatives = np.add.reduceat(np.where(self.positive, 0.0, counts), self.ties)
        total = positives.sum() * negatives.sum()
        if total == 0:
            return float("nan")
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + negatives / 2)).sum() / total)
