"""The measure that training stops by: the same places and metrics as an evaluation, on events prepared once.

A random choice of the validation events is asked, each from the newest events before it, as when serving. Beside
quality it watches for collapse: user vectors that all point one way, or answers that are the popular items for all.

Legend: P questions, N events of their windows together, V known items, E floats of a user vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activity.history import Histories
from encoder.batches import log_gaps
from encoder.corpus import Corpus
from encoder.evaluation.metrics import (
    METRICS,
    TOP,
    leave_out_seen,
    per_question,
    popularity_share,
    target_places,
    top_items,
)
from encoder.evaluation.questions import Seen, asked_rows
from encoder.protocols import VALIDATION, Split
from encoder.vocabulary import Indexes, Vocabulary

_BLOCK_EVENTS = 1_000_000
_MOST_EVENTS = 2_000_000  # in all windows: what bounds the time of one measurement
_CHUNK_EVENTS = 16_384
_CHUNK_SCORES = 4_000_000


@dataclass(frozen=True, eq=False)
class Windows:
    """Model inputs, jagged: int64 [N] vocabulary indexes, `log_gaps` float32 [N], `offsets` int64 [P + 1]."""

    items: Tensor
    actions: Tensor
    surfaces: Tensor
    log_gaps: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class ValidationChunk:
    """P questions. `items` int64[M] and `offsets` int64[P + 1]: their whole inputs, of which `windows` are the newest
    part; `targets` int64[P], 0 where the item is unknown."""

    windows: Windows
    items: Indexes
    offsets: Indexes
    targets: Indexes


# Scores of every known item [P, V], higher is better, and the user vectors [P, E] behind them.
ScoreFunction = Callable[[Windows], tuple[Tensor, Tensor]]


class Validator:
    """`chunks` holds the questions, ordered by the length of their windows."""

    def __init__(
        self,
        corpus: Corpus,
        split: Split,
        vocabulary: Vocabulary,
        *,
        served_length: int,
        seen: Seen = "filtered",
        role: int = VALIDATION,
        max_questions: int = 20_000,
        seed: int = 0,
    ) -> None:
        """`seen`: whether a user's earlier items are candidates. At most `max_questions` random events with `role` are
        asked, fewer where they would need windows of more than two million events."""
        self._seen: Seen = seen
        self._vocabulary_size = len(vocabulary.items)
        rows, windows = _choose(corpus, split, role, served_length, max_questions, seed)
        order = np.argsort(windows, kind="stable")
        histories, targets = _gather(corpus, rows, vocabulary)
        self.chunks = [
            _chunk(histories.take(part), targets[part], vocabulary, served_length)
            for part in _parts(order, windows, len(vocabulary.items))
        ]
        self.popularity = _popularity(corpus, split, vocabulary, role)
        scores = torch.from_numpy(self.popularity.astype(np.float32))
        found = [self._places(scores.repeat(len(chunk.targets), 1), chunk)[0] for chunk in self.chunks]
        self._popularity_recall = _mean(found, "recall@10")

    @property
    def questions(self) -> int:
        return sum(len(chunk.targets) for chunk in self.chunks)

    def measure(self, score: ScoreFunction) -> dict[str, float]:
        """recall_at_10, ndcg_at_10, popularity_recall_at_10 (of ranking by popularity, for comparison),
        popularity_share (of top tens: the most popular hundredth of items), mean_cosine (between users), effective_rank
        (of the user vectors: 1 = one direction, E = all alike), held_out_events. All 0 where nothing is asked.

        Raises ValueError for scores that are not numbers.
        """
        places, vectors = [], []
        recommended = np.zeros(self._vocabulary_size + 1, np.int64)
        with torch.inference_mode():
            for chunk in self.chunks:
                scores, users = score(chunk.windows)
                found, best = self._places(scores.float(), chunk)
                places.append(found)
                recommended += np.bincount(best.ravel(), minlength=len(recommended))
                vectors.append(users.float().cpu())
        spread = _spread(torch.cat(vectors)) if vectors else (0.0, 0.0)
        return {
            f"recall_at_{TOP}": _mean(places, f"recall@{TOP}"),
            f"ndcg_at_{TOP}": _mean(places, f"ndcg@{TOP}"),
            f"popularity_recall_at_{TOP}": self._popularity_recall,
            "popularity_share": popularity_share(recommended[1:], self.popularity),
            "mean_cosine": spread[0],
            "effective_rank": spread[1],
            "held_out_events": self.questions,
        }

    def _places(self, scores: Tensor, chunk: ValidationChunk) -> tuple[np.ndarray, Indexes]:
        scores = scores.cpu()
        if self._seen == "filtered":
            leave_out_seen(scores, chunk.items, chunk.offsets)
        return target_places(scores, chunk.targets), top_items(scores)


def _choose(
    corpus: Corpus, split: Split, role: int, served_length: int, max_questions: int, seed: int
) -> tuple[Indexes, Indexes]:
    """Rows of the corpus's columns, ascending, and the lengths of their windows."""
    rows, windows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for first_user, last_user in corpus.blocks(_BLOCK_EVENTS):
        histories = corpus.read(first_user, last_user)
        found = asked_rows(histories.offsets, split.roles(histories), role=role)
        starts = histories.offsets[np.searchsorted(histories.offsets, found, side="right") - 1]
        rows.append(found + corpus.offsets[first_user])
        windows.append(np.minimum(found - starts, served_length))
    every, lengths = np.concatenate(rows), np.concatenate(windows)
    shuffled = np.random.default_rng(seed).permutation(len(every))[:max_questions]
    within = int(np.searchsorted(np.cumsum(lengths[shuffled]), _MOST_EVENTS, side="right"))
    chosen = np.sort(shuffled[: max(within, 1)])
    return every[chosen], lengths[chosen]


def _gather(corpus: Corpus, rows: Indexes, vocabulary: Vocabulary) -> tuple[Histories, Indexes]:
    """The whole inputs of these questions, and their targets."""
    inputs, targets = [], [np.empty(0, np.int64)]
    for first_user, last_user in corpus.blocks(_BLOCK_EVENTS):
        first = int(corpus.offsets[first_user])
        low, high = np.searchsorted(rows, [first, corpus.offsets[last_user]])
        if low == high:
            continue
        histories, inside = corpus.read(first_user, last_user), rows[low:high] - first
        starts = histories.offsets[np.searchsorted(histories.offsets, inside, side="right") - 1]
        inputs += [histories.values[start:end] for start, end in zip(starts, inside, strict=True)]
        targets.append(vocabulary.item_indexes(histories.values["item"][inside]))
    return Histories.of(inputs), np.concatenate(targets)


def _parts(order: Indexes, windows: Indexes, vocabulary_size: int) -> list[Indexes]:
    """`order` cut where a chunk's events or scores would be too many."""
    most = max(_CHUNK_SCORES // max(vocabulary_size, 1), 1)
    parts: list[Indexes] = []
    ends = np.cumsum(windows[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        within = int(np.searchsorted(ends, before + _CHUNK_EVENTS, side="right"))
        stop = max(min(start + most, within), start + 1)
        parts.append(order[start:stop])
        start = stop
    return parts


def _chunk(histories: Histories, targets: Indexes, vocabulary: Vocabulary, served_length: int) -> ValidationChunk:
    recent = histories.newest(served_length)
    items, actions, surfaces = (torch.from_numpy(column) for column in vocabulary.event_indexes(recent))
    gaps = torch.from_numpy(log_gaps(recent.values["timestamp"], recent.offsets))
    windows = Windows(items, actions, surfaces, gaps, torch.from_numpy(recent.offsets))
    return ValidationChunk(windows, vocabulary.item_indexes(histories.values["item"]), histories.offsets, targets)


def _popularity(corpus: Corpus, split: Split, vocabulary: Vocabulary, role: int) -> Indexes:
    """int64[V]: events of each item before those asked for."""
    counts = np.zeros(len(vocabulary.items) + 1, np.int64)
    for histories in split.allowed_histories(corpus, upto=role - 1):
        counts += np.bincount(vocabulary.item_indexes(histories.values["item"]), minlength=len(counts))
    return counts[1:]


def _mean(places: list[np.ndarray], metric: str) -> float:
    if not places:
        return 0.0
    return float(per_question(np.concatenate(places))[:, METRICS.index(metric)].mean())


def _spread(vectors: Tensor) -> tuple[float, float]:
    """Mean cosine of two users, and exp(entropy) of the share of variance on each principal axis, uncentred."""
    users = len(vectors)
    unit = torch.nn.functional.normalize(vectors, dim=1).double()
    cosine = (unit.sum(0).square().sum() - users) / max(users * (users - 1), 1)
    shares = torch.linalg.eigvalsh(unit.T @ unit).clamp_min(0)
    shares = shares / shares.sum().clamp_min(1e-12)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return float(cosine), float(entropy.exp())
