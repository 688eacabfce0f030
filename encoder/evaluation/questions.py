"""Questions of an evaluation: predict the item of one event from all earlier events of the user.

Every event with the evaluated role is a question, with any action, repeats included. A user's first event is not, since
it has no input. Questions are split into chunks, so that memory does not grow with the data.

Legend: P questions, N events of all their inputs together, V known items (vocabulary indexes 1 to V, 0 unknown).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spoor.activity.history import Histories, slice_rows
from spoor.encoder.data.split import Roles
from spoor.encoder.model.vocabulary import Indexes, Vocabulary

Seen = Literal["filtered", "kept"]  # whether the user's earlier items are candidates

_MOST_SCORES = 4_000_000  # scores per chunk: 16 MB of float32 per array of that shape
_MOST_QUESTIONS = 1024
_MOST_EVENTS = 1_000_000  # events in the inputs of one chunk


@dataclass(frozen=True, eq=False)
class Inputs:
    """All that a scorer may read. `histories`: P complete inputs of at least one event each, oldest first; `items`
    int64[N]: items of their events as vocabulary indexes."""

    histories: Histories
    items: Indexes

    @property
    def count(self) -> int:
        return self.histories.count

    @property
    def offsets(self) -> Indexes:
        return self.histories.offsets

    def newest(self, max_events: int) -> Inputs:
        """The newest `max_events` events of each input."""
        from_end = np.repeat(self.offsets[1:], self.histories.lengths) - np.arange(len(self.items))
        return Inputs(self.histories.newest(max_events), self.items[from_end <= max_events])


@dataclass(frozen=True, eq=False)
class Questions:
    """`users` int64[P]: user numbers in the corpus, ascending; `targets` int64[P]: vocabulary indexes of the items to
    predict; `times` int64[P]: times of these events, in ms."""

    inputs: Inputs
    users: Indexes
    targets: Indexes
    times: Indexes


def asked_rows(offsets: Indexes, roles: Roles, *, role: int) -> Indexes:
    """int64[P], ascending: rows of the events with this role that have an earlier event of the same user."""
    first = np.zeros(len(roles), bool)
    first[offsets[:-1][np.diff(offsets) > 0]] = True
    return np.flatnonzero((roles == role) & ~first)


def question_chunks(
    histories: Histories, roles: Roles, vocabulary: Vocabulary, *, role: int, first_user: int = 0
) -> Iterator[Questions]:
    """The questions of these users in order, in chunks that fit into memory with V scores per question.

    `roles` uint8[N]: role of every event. `first_user`: corpus number of the first user.
    """
    rows = asked_rows(histories.offsets, roles, role=role)
    users = np.searchsorted(histories.offsets, rows, side="right") - 1
    items = vocabulary.item_indexes(histories.values["item"])
    lengths = rows - histories.offsets[users]
    for part in _chunks(lengths, questions_at_once(len(vocabulary.items))):
        before, offsets = slice_rows(histories.offsets[users[part]], lengths[part])
        yield Questions(
            Inputs(Histories(histories.values[before], offsets), items[before]),
            users=users[part] + first_user,
            targets=items[rows[part]],
            times=histories.values["timestamp"][rows[part]],
        )


def questions_at_once(vocabulary_size: int) -> int:
    """Number of questions scored together, so that memory does not grow with the catalogue."""
    return min(max(_MOST_SCORES // max(vocabulary_size, 1), 1), _MOST_QUESTIONS)


def _chunks(lengths: Indexes, most_questions: int) -> Iterator[slice]:
    """Chunks of one to `most_questions` questions; `_MOST_EVENTS` events at most, unless one question has more."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        within = int(np.searchsorted(ends, before + _MOST_EVENTS, side="right"))
        stop = max(min(start + most_questions, within), start + 1)
        yield slice(start, stop)
        start = stop
