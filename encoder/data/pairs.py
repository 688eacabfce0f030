"""Pairs of an event and a later target event in a batch, for PinFM's three losses.

    next token    event i predicts event i + 1
    multi token   event i predicts events up to i + L'; some of these pairs are drawn
    future token  the event at the served length predicts the L' events after it; in a shorter segment, a drawn event

Only items of positive events are targets. A pair's weight is its loss's weight divided by the number of its loss's
pairs in the batch, so the loss of a batch is the weighted sum over its pairs, however processes divide them.

Legend: N events of the batch, S segments, P pairs, L' = window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """`rows` int64[P]: events whose user vectors predict, `items` int64[P]: vocabulary indexes of the targets,
    `weights` float32[P]."""

    rows: Indexes
    items: Indexes
    weights: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: Indexes, items: Indexes, *, weight: float = 1.0) -> Pairs:
        """Pairs of equal weights that sum to `weight`."""
        return cls(rows, items, np.full(len(rows), weight / max(len(rows), 1), np.float32))

    @classmethod
    def join(cls, several: list[Pairs]) -> Pairs:
        """All pairs, ordered by row."""
        rows = np.concatenate([np.empty(0, np.int64), *(pairs.rows for pairs in several)])
        items = np.concatenate([np.empty(0, np.int64), *(pairs.items for pairs in several)])
        weights = np.concatenate([np.empty(0, np.float32), *(pairs.weights for pairs in several)])
        order = np.argsort(rows, kind="stable")
        return cls(rows[order], items[order], weights[order])

    def __len__(self) -> int:
        return len(self.rows)


def next_token_pairs(targets: Indexes, *, weight: float) -> Pairs:
    """`targets` int64[N]: the item of the user's next event, 0 if it is no target."""
    rows = np.flatnonzero(targets)
    return Pairs.of(rows, targets[rows], weight=weight)


def multi_token_pairs(
    items: Indexes,
    positive: npt.NDArray[np.bool_],
    offsets: Indexes,
    *,
    window: int,
    most: int,
    rng: np.random.Generator,
    weight: float,
) -> Pairs:
    """`items` int64[N], `positive` bool[N]: whether an event may be a target, `offsets` int64[S + 1]: of the segments.
    Draws at most `most` of all pairs, each equally likely."""
    every = np.arange(len(positive))
    ends = np.repeat(offsets[1:], np.diff(offsets))
    rows, answers = _within(positive, every, np.minimum(every + window + 1, ends), most=most, rng=rng)
    return Pairs.of(rows, items[answers], weight=weight)


def future_token_pairs(
    items: Indexes,
    positive: npt.NDArray[np.bool_],
    offsets: Indexes,
    *,
    served_length: int,
    window: int,
    rng: np.random.Generator,
    weight: float,
) -> Pairs:
    """As `multi_token_pairs`, only from the event at index served_length - 1 of its segment. If a segment ends there or
    earlier, the event is drawn from all that have a successor."""
    lengths = np.diff(offsets)
    with_successor = np.maximum(lengths - 1, 1)
    cuts = np.where(lengths > served_length, served_length - 1, rng.integers(0, with_successor))
    some = lengths > 1
    rows, ends = (offsets[:-1] + cuts)[some], offsets[1:][some]
    rows, answers = _within(positive, rows, np.minimum(rows + window + 1, ends), most=None, rng=rng)
    return Pairs.of(rows, items[answers], weight=weight)


def _within(
    positive: npt.NDArray[np.bool_], rows: Indexes, ends: Indexes, *, most: int | None, rng: np.random.Generator
) -> tuple[Indexes, Indexes]:
    """(row, target) for the positive events between each row and its end (both exclusive), or `most` of them."""
    answers = np.flatnonzero(positive)
    before = np.concatenate([[0], np.cumsum(positive)])
    counts = np.maximum(before[ends] - before[rows + 1], 0)
    bounds = np.cumsum(counts)
    total = int(bounds[-1]) if len(bounds) else 0
    if most is None or total <= most:
        chosen = np.arange(total)
    else:
        chosen = np.sort(rng.choice(total, most, replace=False, shuffle=False))
    place = np.searchsorted(bounds, chosen, side="right")
    nth = chosen - (bounds[place] - counts[place])
    return rows[place], answers[before[rows[place] + 1] + nth]
