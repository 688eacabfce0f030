"""Validation during training: full ranking over the validation events of a sample of users.

A question's input is the part of a window before its event. One window serves all questions of a user in its newer
half, so an input has between half of `served_length` and `served_length` events (fewer for short histories).
Besides quality, it measures collapse: user vectors that all point one way, or lists of popular items only.

Legend: P questions, V known items, E = config.dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from spoor.activity.history import slice_rows
from spoor.base.errors import DataError
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import VALIDATION, Split
from spoor.encoder.evaluation import metrics
from spoor.encoder.evaluation.mixture import Asked, Mixture
from spoor.encoder.evaluation.questions import Seen, asked_rows, questions_at_once
from spoor.encoder.model.events import Events
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.model.vocabulary import Indexes, Vocabulary

_MOST_QUESTIONS = 20_000  # above this, a random sample, which changes metrics by less than 0.005
_TOKENS_AT_ONCE = 16_384
_READ_EVENTS = 1_000_000


class Validator:
    """Holds the questions in memory: the events of at most `max_users` users. Raises DataError if there is no
    question."""

    def __init__(
        self,
        corpus: Corpus,
        split: Split,
        vocabulary: Vocabulary,
        *,
        seen: Seen = "filtered",
        role: int = VALIDATION,
        max_users: int = 20_000,
        seed: int = 0,
    ) -> None:
        """`seen`: whether the user's earlier items are candidates; `seed`: for sampling users and questions."""
        self.seen: Seen = seen
        self._vocabulary_size = len(vocabulary.items)
        self._rows_at_once = questions_at_once(self._vocabulary_size)
        rng = np.random.default_rng([seed, role])
        chosen = np.sort(rng.permutation(_askable(corpus, split, role))[:max_users])
        self._popularity = np.zeros(self._vocabulary_size, np.int64)
        parts, rows, begun = [], [], 0
        for first, last in corpus.blocks(_READ_EVENTS):
            histories = corpus.read(first, last)
            before = split.roles(histories) < role
            known = vocabulary.item_indexes(histories.values["item"])
            self._popularity += np.bincount(known[before], minlength=self._vocabulary_size + 1)[1:]
            own = histories.take(chosen[(chosen >= first) & (chosen < last)] - first)
            rows.append(begun + asked_rows(own.offsets, split.roles(own), role=role))
            parts.append((*vocabulary.event_indexes(own), own.values["timestamp"], own.lengths))
            begun += len(own.values)
        *columns, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
        *columns, times = columns
        self._items, self._offsets = columns[0], np.concatenate([[0], np.cumsum(lengths)])
        self._events = Events.of(columns, times, self._offsets)  # whole histories of the chosen users
        asked = np.concatenate(rows)
        asked = asked[self._items[asked] > 0]
        self._rows = np.sort(rng.permutation(asked)[:_MOST_QUESTIONS])
        if len(self._rows) == 0:
            raise DataError(
                f"the protocol {split.protocol} leaves no validation event to measure quality on",
                hint="leave-one-out needs users with three events, the others an event before the newest ones",
            )
        self._owners = np.searchsorted(self._offsets, self._rows, side="right") - 1
        self._popular = self._ranked(lambda part: self._popular_scores(part))[0]

    @property
    def questions(self) -> int:
        return len(self._rows)

    def measure(self, model: UserEncoder) -> dict[str, float]:
        """Recall@10 and NDCG@10 of the model (in evaluation mode) and of popularity, and indicators of collapse:
        the share of top-ten places taken by the most popular hundredth of items, the mean cosine between user vectors,
        and their effective rank (the exponential of the entropy of their spectrum)."""
        with torch.inference_mode():
            vectors = self._user_vectors(model).float()
            items = model.every_target().float().T
            places, recommended = self._ranked(lambda part: vectors[part] @ items)
            return {
                **_quality("", places),
                **_quality("popularity_", self._popular),
                "popularity_share": metrics.popularity_share(recommended, self._popularity),
                **_collapse(vectors),
                "validation_events": self.questions,
            }

    def asked(self, model: UserEncoder) -> Iterator[Asked]:
        """The questions in chunks with the scores of the model (in evaluation mode), to fit a mixture on."""
        with torch.inference_mode():  # not around the loop: the consumer would run in inference mode too
            vectors = (self._user_vectors(model).float() / model.temperature.cpu()).numpy()
            items = model.every_target().float().cpu().numpy().T
        for first in range(0, self.questions, self._rows_at_once):
            part = slice(first, first + self._rows_at_once)
            yield Asked(vectors[part] @ items, *self._inputs(part), self._items[self._rows[part]])

    def measure_mixture(self, model: UserEncoder, mixture: Mixture) -> dict[str, float]:
        """Recall@10 and NDCG@10 of the model with the mixture."""
        chunks = self.asked(model)
        mixed = (torch.from_numpy(mixture.scores(part.vector_scores, part.items, part.offsets)) for part in chunks)
        return _quality("mixture_", self._ranked(lambda _: next(mixed))[0])

    def _inputs(self, part: slice) -> tuple[Indexes, Indexes]:
        """The items of all events before each of these questions, and their offsets."""
        starts = self._offsets[self._owners[part]]
        earlier, offsets = slice_rows(starts, self._rows[part] - starts)
        return self._items[earlier], offsets

    def _popular_scores(self, part: slice) -> Tensor:
        scores = torch.from_numpy(self._popularity.astype(np.float32))
        return scores.expand(len(self._rows[part]), -1).clone()

    def _ranked(self, scores_of) -> tuple[metrics.Places, npt.NDArray[np.int64]]:
        """The place of every target, and int64[V]: number of top-ten places of each item."""
        places, recommended = [], np.zeros(self._vocabulary_size + 1, np.int64)
        for first in range(0, self.questions, self._rows_at_once):
            part = slice(first, first + self._rows_at_once)
            scores = scores_of(part)
            if self.seen == "filtered":
                metrics.leave_out_seen(scores, *self._inputs(part))
            places.append(metrics.target_places(scores, self._items[self._rows[part]]))
            found = metrics.top_items(scores).ravel()
            recommended += np.bincount(found, minlength=len(recommended))
        return np.concatenate(places), recommended[1:]

    def _user_vectors(self, model: UserEncoder) -> Tensor:
        """[P, E]: the user vector before each question."""
        vectors = torch.empty(self.questions, model.config.dimension)
        device = model.items.weight.device
        for windows in _batched(self._windows(model.config.served_length)):
            lengths = np.array([end - start for start, end, _, _ in windows])
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            rows = np.concatenate([np.arange(start, end) for start, end, _, _ in windows])
            found = model(self._events.take(rows, torch.from_numpy(offsets)).to(device)).cpu()
            for (start, _, first, last), base in zip(windows, offsets, strict=False):
                vectors[first:last] = found[torch.from_numpy(self._rows[first:last] - 1 - start + base)]
        return vectors

    def _windows(self, longest: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields (first event, last event + 1, first question, last question + 1); every question is in one window."""
        half = max(longest // 2, 1)
        first = 0
        while first < self.questions:
            owner, row = self._owners[first], self._rows[first]
            last = int(np.searchsorted(self._rows, min(row + half, self._offsets[owner + 1])))
            last = max(last, first + 1)
            end = int(self._rows[last - 1])
            yield max(int(self._offsets[owner]), end - longest), end, first, last
            first = last


def _askable(corpus: Corpus, split: Split, role: int) -> Indexes:
    """Users with a question: an event of this role after an event of an earlier role."""
    before = split.allowed_lengths(corpus, upto=role - 1)
    return np.flatnonzero((split.allowed_lengths(corpus, upto=role) > before) & (before > 0))


def _batched(windows: Iterator[tuple[int, int, int, int]]) -> Iterator[list[tuple[int, int, int, int]]]:
    taken: list[tuple[int, int, int, int]] = []
    tokens = 0
    for window in windows:
        taken.append(window)
        tokens += window[1] - window[0]
        if tokens >= _TOKENS_AT_ONCE:
            yield taken
            taken, tokens = [], 0
    if taken:
        yield taken


def _quality(prefix: str, places: metrics.Places) -> dict[str, float]:
    named = dict(zip(metrics.METRICS, metrics.per_question(places).mean(0).tolist(), strict=True))
    return {f"{prefix}{name}_at_10": named[f"{name}@10"] for name in ("recall", "ndcg")}


def _collapse(vectors: Tensor) -> dict[str, float]:
    unit = F.normalize(vectors, dim=1)
    count = len(unit)
    # The mean over pairs of different users, excluding each vector's pair with itself.
    cosine = (unit.mean(0).square().sum().item() * count - 1) / (count - 1) if count > 1 else 1.0
    spectrum = torch.linalg.eigvalsh((unit.T @ unit / count).double()).clamp_min(0)
    shares = spectrum / spectrum.sum()
    return {
        "mean_cosine": cosine,
        "effective_rank": torch.special.entr(shares).sum().exp().item(),
    }
