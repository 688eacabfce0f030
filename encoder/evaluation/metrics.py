"""Places (ranks) and metrics from scores.

A target's place is the number of candidates that score higher, with ties counted half, so that constant scores gain
nothing. Place 0 is the best. Recall@k = 1 if place < k; NDCG@k = 1 / log2(place + 2) if place < k. A question has one
target, so Recall@k is the hit rate.

Legend: P questions, V known items, k a cutoff.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spoor.encoder.model.vocabulary import Indexes

CUTOFFS = (5, 10, 50)
TOP = 10  # length of the lists that coverage and popularity share use
METRICS = tuple(f"{metric}@{cutoff}" for cutoff in CUTOFFS for metric in ("recall", "ndcg"))
Places = npt.NDArray[np.float64]


def leave_out_seen(scores: Tensor, items: Indexes, offsets: Indexes) -> None:
    """Sets scores of each input's items to -inf in place. float32 [P, V], items int64[N], offsets int64[P + 1]."""
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    known = items > 0
    scores[torch.from_numpy(rows[known]), torch.from_numpy(items[known] - 1)] = -torch.inf


def target_places(scores: Tensor, targets: Indexes) -> Places:
    """float64[P] from scores [P, V] and vocabulary indexes int64[P]; infinity if the target is unknown (0) or not a
    candidate (-inf). Raises ValueError for NaN scores: comparisons with NaN are false, so every target would have
    place 0."""
    if bool(torch.isnan(scores).any()):
        raise ValueError("scores hold NaN")
    places = np.full(len(targets), np.inf)
    known = torch.from_numpy(np.maximum(targets - 1, 0))[:, None]
    if scores.shape[1] == 0:
        return places
    own = scores.gather(1, known)
    higher = (scores > own).sum(1).double()
    equal = (scores == own).sum(1) - 1  # excluding the target itself
    candidate = (targets > 0) & ~torch.isneginf(own[:, 0]).numpy()
    places[candidate] = (higher + equal / 2).numpy()[candidate]
    return places


def top_items(scores: Tensor) -> npt.NDArray[np.int64]:
    """int64[P, TOP]: vocabulary indexes of the highest scores; 0 if there are fewer candidates."""
    found = torch.topk(scores, min(TOP, scores.shape[1]), dim=1)
    return torch.where(torch.isneginf(found.values), 0, found.indices + 1).numpy()


def per_question(places: Places) -> npt.NDArray[np.float64]:
    """The metrics of each question, float64[P, len(METRICS)]."""
    gains = 1 / np.log2(places + 2)
    columns = [column for cutoff in CUTOFFS for column in (places < cutoff, np.where(places < cutoff, gains, 0))]
    return np.stack(columns, axis=1).astype(np.float64)


def popularity_share(
    recommended: npt.NDArray[np.int64], popularity: npt.NDArray[np.int64], *, most_popular: float = 0.01
) -> float:
    """Share of places in top lists taken by the `most_popular` share of items (at least one item). Both int64[V]:
    `recommended` counts an item's places in top lists, `popularity` its training events."""
    head = max(round(len(popularity) * most_popular), 1)
    most = np.argsort(-popularity, kind="stable")[:head]
    return float(recommended[most].sum() / max(recommended.sum(), 1))


def coverage(recommended: npt.NDArray[np.int64]) -> float:
    """Share of items in at least one top list, from places per item int64[V]."""
    return float((recommended > 0).mean()) if len(recommended) else 0.0
