"""What evaluation asks: the item of one event of a user, given every event of theirs before it.

Every event with the asked role is a question, whatever its action, repeats included; only a user's first event is not,
since nothing comes before it. Questions are cut into chunks, so that memory does not grow with the data.

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

_MOST_SCORES = 4_000_000  # of one chunk: 16 MB of float32 for each array of that shape
_MOST_QUESTIONS = 1024
_MOST_EVENTS = 1_000_000  # in the inputs of one chunk


@dataclass(frozen=True, eq=False)
class Inputs:
    """All that a scorer may look at. `histories`: P inputs of at least one event each, oldest first, whole;
    `items` int64[N]: their events' items as vocabulary indexes."""

    histories: Histories
    items: Indexes

    @property
    def count(self) -> int:
        return self.histories.count

    @property
    def offsets(self) -> Indexes:
        return self.histories.offsets

    def newest(self, max_events: int) -> Inputs:
        """At most `max_events` events of each input: the newest."""
        from_end = np.repeat(self.offsets[1:], self.histories.lengths) - np.arange(len(self.items))
        return Inputs(self.histories.newest(max_events), self.items[from_end <= max_events])


@dataclass(frozen=True, eq=False)
class Questions:
    """`users` int64[P]: numbers in the corpus, ascending; `targets` int64[P]: what they did next, as vocabulary
    indexes; `times` int64[P]: when, in ms."""

    inputs: Inputs
    users: Indexes
    targets: Indexes
    times: Indexes


def asked_rows(offsets: Indexes, roles: Roles, *, role: int) -> Indexes:
    """int64[P], ascending: the events with this role that have an event of the same user before them."""
    first = np.zeros(len(roles), bool)
    first[offsets[:-1][np.diff(offsets) > 0]] = True
    return np.flatnonzero((roles == role) & ~first)


def question_chunks(
    histories: Histories, roles: Roles, vocabulary: Vocabulary, *, role: int, first_user: int = 0
) -> Iterator[Questions]:
    """The questions of these users in order, in chunks that fit into memory with their V scores each.

    `roles` uint8[N]: of every event. `first_user`: the corpus's number of the first of these users.
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
    """How many questions are scored together, so that memory does not grow with the catalogue."""
    return min(max(_MOST_SCORES // max(vocabulary_size, 1), 1), _MOST_QUESTIONS)


def _chunks(lengths: Indexes, most_questions: int) -> Iterator[slice]:
    """At most `most_questions` and about `_MOST_EVENTS` events, at least one question, each."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        within = int(np.searchsorted(ends, before + _MOST_EVENTS, side="right"))
        stop = max(min(start + most_questions, within), start + 1)
        yield slice(start, stop)
        start = stop
