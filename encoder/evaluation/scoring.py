"""The interface of a scorer (a score for every known item), and the data to fit it on.

Legend: P questions, V known items, U users, N events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from spoor.activity.history import slice_rows
from spoor.encoder.data.split import VALIDATION, Roles
from spoor.encoder.evaluation.metrics import METRICS, leave_out_seen, per_question, target_places
from spoor.encoder.evaluation.questions import Inputs, Seen, asked_rows
from spoor.encoder.model.vocabulary import Indexes

Scores = npt.NDArray[np.float32]
_QUESTIONS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Training:
    """Data to fit scorers on: the items of all events whose role is before the evaluated one.

    `items` int32[N] vocabulary indexes, by user, oldest first; `offsets` int64[U + 1]; `roles` uint8[N],
    non-decreasing within a user; `vocabulary_size` V. Scorers choose their settings on the validation events.
    """

    items: npt.NDArray[np.int32]
    offsets: Indexes
    roles: Roles
    vocabulary_size: int
    seen: Seen

    def before_validation(self) -> Training:
        """Without validation events: candidate settings are fitted on this."""
        return self._keep(self.roles < VALIDATION)

    def validation_rows(self, *, at_most: int, seed: int = 0) -> Indexes:
        """Rows of validation events, ascending; a random sample if there are more than `at_most`."""
        rows = asked_rows(self.offsets, self.roles, role=VALIDATION)
        if len(rows) > at_most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, at_most, replace=False))
        return rows

    def inputs_before(self, rows: Indexes) -> tuple[Indexes, Indexes]:
        """The items of the user's events before each of these P events: int64[N], offsets int64[P + 1]."""
        starts = self.offsets[np.searchsorted(self.offsets, rows, side="right") - 1]
        before, offsets = slice_rows(starts, rows - starts)
        return self.items[before].astype(np.int64), offsets

    def popularity(self) -> npt.NDArray[np.int64]:
        """int64[V]: number of events of each known item."""
        return np.bincount(self.items, minlength=self.vocabulary_size + 1)[1:]

    def _keep(self, kept: npt.NDArray[np.bool_]) -> Training:
        before = np.concatenate([[0], np.cumsum(kept)])
        return Training(self.items[kept], before[self.offsets], self.roles[kept], self.vocabulary_size, self.seen)


class Scorer(Protocol):
    """A rule or model that ranks every known item."""

    def prepare(self, training: Training) -> None:
        """Fits the scorer; called once, before any `scores`."""
        ...

    def scores(self, inputs: Inputs) -> Scores:
        """float32[P, V]: higher is better, column v - 1 for vocabulary index v. No NaN."""
        ...

    def describe(self) -> str:
        """A short text of its settings, chosen ones included, for the report."""
        ...


def mean_ndcg(training: Training, rows: Indexes, scores: Callable[[Indexes, Indexes], Scores]) -> float:
    """Mean NDCG@10 of the events at these rows of the training data, used to choose settings. `scores` maps the items
    int64[N] before P events, and offsets int64[P + 1], to float32[P, V]."""
    total = 0.0
    for start in range(0, len(rows), _QUESTIONS_AT_ONCE):
        part = rows[start : start + _QUESTIONS_AT_ONCE]
        items, offsets = training.inputs_before(part)
        found = torch.from_numpy(scores(items, offsets))
        if training.seen == "filtered":
            leave_out_seen(found, items, offsets)
        places = target_places(found, training.items[part].astype(np.int64))
        total += float(per_question(places)[:, METRICS.index("ndcg@10")].sum())
    return total / len(rows)
