"""How well user vectors rank what comes next: full ranking over a held-out tail of time, beside popularity.

Every held-out positive event is predicted from the events before it (between half of max_events and max_events of
them, as far as the user has them), among all known items. Two rankings are reported: of every item, and `unseen`: of
the items that the user has not met, for targets that are new to them.

Legend: P predictions, V known items, E = config.dimension.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encoder.data import TrainingEvents
from encoder.model import UserEncoder
from encoder.vocabulary import Indexes

CUTOFF = 10
_MOST_PREDICTIONS = 20_000  # a random choice above: the metrics then move by less than 0.005
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class HeldOut:
    """`events`: the whole histories. `predictions` int64[P]: row r stands for the target `events.targets[r]`, to be
    predicted from the events up to and including r. `popularity` float32[V]: training events of each item."""

    events: TrainingEvents
    predictions: Indexes
    popularity: npt.NDArray[np.float32]


def hold_out(
    events: TrainingEvents, times_ms: npt.NDArray[np.int64], *, from_ms: int, vocabulary_size: int, seed: int
) -> HeldOut:
    """`times_ms` int64[N]: of every event; those from `from_ms` on are held out. A user's first event is predicted
    from nothing, so it is never asked for."""
    target_times = np.append(times_ms[1:], 0)
    predictions = np.flatnonzero((events.targets > 0) & (target_times >= from_ms))
    if len(predictions) > _MOST_PREDICTIONS:
        chosen = np.random.default_rng(seed).choice(predictions, _MOST_PREDICTIONS, replace=False)
        predictions = np.sort(chosen)
    trained = events.items[times_ms < from_ms]
    popularity = np.bincount(trained, minlength=vocabulary_size + 1)[1:].astype(np.float32)
    return HeldOut(events, predictions, popularity)


def evaluate(model: UserEncoder, held_out: HeldOut) -> dict[str, float]:
    """Recall@10 and NDCG@10 of the model and of popularity, each over all and over unseen items. All are 0 where
    nothing could be predicted."""
    vocabulary_size = len(held_out.popularity)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        item_vectors = model.targets(torch.arange(1, vocabulary_size + 1))
        vectors = _user_vectors(model, held_out)
        ranks = _ranks(held_out, lambda rows: vectors[rows] @ item_vectors.T)
        popularity = torch.from_numpy(held_out.popularity)
        baseline = _ranks(held_out, lambda rows: popularity.expand(len(range(*rows.indices(len(vectors)))), -1))
    model.train(was_training)
    return {
        **_metrics("", ranks),
        **_metrics("popularity_", baseline),
        "held_out_events": len(held_out.predictions),
    }


def _user_vectors(model: UserEncoder, held_out: HeldOut) -> Tensor:
    """[P, E]: the vector before each prediction, from windows that overlap by half."""
    events, longest = held_out.events, model.config.max_events
    vectors = torch.empty(len(held_out.predictions), model.config.dimension)
    step = max(longest // 2, 1)
    for start, end in itertools.pairwise(events.offsets):
        first, last = np.searchsorted(held_out.predictions, [start, end])
        while first < last:
            window_end = int(held_out.predictions[first]) + step
            reached = int(np.searchsorted(held_out.predictions[first:last], window_end)) + first
            newest = int(held_out.predictions[reached - 1]) + 1
            oldest = max(int(start), newest - longest)
            columns = (events.items, events.actions, events.surfaces)
            inputs = (torch.from_numpy(column[oldest:newest]) for column in columns)
            found = model(*inputs, torch.tensor([0, newest - oldest]))
            vectors[first:reached] = found[held_out.predictions[first:reached] - oldest]
            first = reached
    return vectors


def _ranks(held_out: HeldOut, scores_of) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The place of each target, 0 the best, among all items, and, for targets that are new to the user, among unseen
    items. Half of the items that tie with the target count as better."""
    everything, unseen = [], []
    for first in range(0, len(held_out.predictions), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        rows = held_out.predictions[part]
        targets = held_out.events.targets[rows]
        scores_PV = scores_of(part)
        own_P1 = scores_PV.gather(1, torch.from_numpy(targets - 1)[:, None])
        better_PV = (scores_PV > own_P1).float() + 0.5 * (scores_PV == own_P1).float()
        better = better_PV.numpy()
        everything.append((better.sum(1) - 0.5).astype(np.int64))
        for row, target, line in zip(rows, targets, better, strict=True):
            user = np.searchsorted(held_out.events.offsets, row, side="right") - 1
            seen = np.unique(held_out.events.items[held_out.events.offsets[user] : row + 1])
            if target not in seen:
                unseen.append(int(line.sum() - line[seen - 1].sum() - 0.5))
    return np.concatenate([np.empty(0, np.int64), *everything]), np.array(unseen, np.int64)


def _metrics(prefix: str, ranks: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]) -> dict[str, float]:
    named = {}
    for suffix, places in zip(("", "_unseen"), ranks, strict=True):
        hits = places[places < CUTOFF]
        asked = max(len(places), 1)
        named[f"{prefix}recall_at_{CUTOFF}{suffix}"] = len(hits) / asked
        named[f"{prefix}ndcg_at_{CUTOFF}{suffix}"] = float((1 / np.log2(hits + 2)).sum()) / asked
    return named
