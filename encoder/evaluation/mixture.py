"""The mixture: item links and the user's own history, added to the vector score when Spoor itself ranks all items.

    score = a (user vector . item vector / temperature) + b link + c log(1 + link / SMALL_LINK) + d popular + own
    popular = log(1 + events of the item)
    own = e + f log(times had) + g / (1 + events since) for items that the user had, 0 for others

The seven weights are fitted by maximum likelihood on the validation events, a convex problem. The vectors in Feast do
not contain the mixture. A release stores it beside the model, so that `spoor evaluate` and a recommender can rank with
or without it.

Legend: P questions, V known items (column v - 1 is vocabulary index v), N events of their inputs, K candidates kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy
from torch import Tensor

from spoor.base.errors import DataError
from spoor.encoder.data.item_links import ItemLinks
from spoor.encoder.model.vocabulary import Indexes

FILE = "mixture.safetensors"
SMALL_LINK = 0.01
_CANDIDATES = 300  # best items of each part used to fit the weights; questions with other targets are dropped
_MOST_CANDIDATES = 6_000_000  # over all questions: 200 MB of features
_RIDGE = 1e-4  # keeps the weight of an absent feature at its initial value
_FEATURES = 7
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MixtureWeights:
    """Weights of the terms in the module docstring, in order."""

    vector: float = 1.0
    link: float = 0.0
    log_link: float = 0.0
    popular: float = 0.0
    had: float = 0.0
    times: float = 0.0
    recent: float = 0.0


@dataclass(frozen=True, eq=False)
class Asked:
    """One chunk of validation questions: `vector_scores` float32[P, V] (divided by the temperature), the inputs'
    `items` int64[N] and `offsets` int64[P + 1], `targets` int64[P], all as vocabulary indexes."""

    vector_scores: Scores
    items: Indexes
    offsets: Indexes
    targets: Indexes


@dataclass(frozen=True, eq=False)
class Mixture:
    links: ItemLinks
    weights: MixtureWeights

    def scores(self, vector_scores: Scores, items: Indexes, offsets: Indexes) -> Scores:
        """float32[P, V], higher is better. Arguments as in `Asked`."""
        link = self.links.scores(items, offsets)[:, 1:]
        weights = self.weights
        mixed = weights.vector * vector_scores + weights.link * link
        if weights.log_link:
            mixed += weights.log_link * np.log1p(link / SMALL_LINK)
        mixed += weights.popular * np.log1p(self.links.events[1:])
        rows, own, times, since = _own_items(items, offsets)
        mixed[rows, own - 1] += weights.had + weights.times * np.log(times) + weights.recent / (1 + since)
        return mixed.astype(np.float32)

    @classmethod
    def fit(cls, links: ItemLinks, questions: Iterable[Asked], *, seen: Literal["filtered", "kept"]) -> Mixture:
        """Fits the weights by maximum likelihood. `seen` filtered: only with items new to the user."""
        features, targets = _training_set(links, questions, seen)
        return cls(links, _likeliest(features, targets) if len(targets) else MixtureWeights())

    def to_bytes(self) -> bytes:
        return safetensors_numpy.save(self.links.arrays(), metadata={"weights": json.dumps(asdict(self.weights))})

    @classmethod
    def from_bytes(cls, data: bytes, *, vocabulary_size: int) -> Mixture:
        """Raises DataError unless `data` was written by `to_bytes` for a vocabulary of this size."""
        try:
            arrays = safetensors_numpy.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            weights = MixtureWeights(**json.loads(header["__metadata__"]["weights"]))
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise DataError(f"{FILE} cannot be read: {error!r}", hint="train the release again") from None
        return cls(ItemLinks.from_arrays(arrays, vocabulary_size=vocabulary_size), weights)


def _own_items(items: Indexes, offsets: Indexes) -> tuple[Indexes, Indexes, Indexes, Indexes]:
    """Each known item of each input once: row, item, its count, and the number of events after its last one."""
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    after = np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(items))
    known = items > 0
    rows, items, after = rows[known], items[known], after[known]
    order = np.lexsort((after, items, rows))
    rows, items, after = rows[order], items[order], after[order]
    first = np.append(True, (np.diff(rows) != 0) | (np.diff(items) != 0))[: len(rows)]
    starts = np.flatnonzero(first)
    return rows[first], items[first], np.diff(np.append(starts, len(rows))), after[first]


def _training_set(links: ItemLinks, questions: Iterable[Asked], seen: str) -> tuple[Tensor, Tensor]:
    """Features [P, K, 7], with -inf in the first for absent candidates, and the targets' positions among them [P]."""
    found: list[Tensor] = []
    targets: list[Tensor] = []
    total = 0
    for question in questions:
        features, places = _candidate_features(links, question, seen)
        found.append(features)
        targets.append(places)
        total += features.shape[0] * features.shape[1]
        if total > _MOST_CANDIDATES:
            break
    if not found:
        return torch.empty(0, 1, _FEATURES), torch.empty(0, dtype=torch.int64)
    widest = max(features.shape[1] for features in found)
    padded = [F.pad(features, (0, 0, 0, widest - features.shape[1])) for features in found]
    for features, narrow in zip(padded, found, strict=True):
        features[:, narrow.shape[1] :, 0] = -torch.inf
    return torch.cat(padded), torch.cat(targets)


def _candidate_features(links: ItemLinks, question: Asked, seen: str) -> tuple[Tensor, Tensor]:
    """Features and target positions of the questions whose target is among the best items of some part. Adding other
    targets to the candidates would bias the weights against high scores."""
    vector = torch.from_numpy(question.vector_scores)
    link = torch.from_numpy(links.scores(question.items, question.offsets)[:, 1:])
    rows, own, times, since = _own_items(question.items, question.offsets)
    history = torch.zeros(*vector.shape, 3)
    place = (torch.from_numpy(rows), torch.from_numpy(own - 1))
    history[place] = torch.from_numpy(np.stack([np.ones(len(own)), np.log(times), 1 / (1 + since)], 1)).float()
    if seen == "filtered":
        vector = vector.masked_fill(history[..., 0] > 0, -torch.inf)
    most = min(_CANDIDATES, vector.shape[1])
    popular = torch.from_numpy(np.log1p(links.events[1:])).float().expand_as(vector)
    parts = (vector, link, popular)
    best = [part.masked_fill(vector == -torch.inf, -torch.inf).topk(most).indices for part in parts]
    if seen == "kept":
        best.append(history[..., 0].topk(min(most, int(np.bincount(rows, minlength=1).max(initial=1)))).indices)
    candidates = torch.cat(best, 1)
    ordered, order = candidates.sort(dim=1, stable=True)
    repeated = torch.zeros_like(candidates, dtype=torch.bool)
    repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
    chosen_link = link.gather(1, candidates)
    features = torch.stack(
        [
            vector.gather(1, candidates).masked_fill(repeated, -torch.inf),
            chosen_link,
            torch.log1p(chosen_link / SMALL_LINK),
            popular.gather(1, candidates),
            *(history[..., index].gather(1, candidates) for index in range(3)),
        ],
        dim=2,
    )
    hit = (candidates == torch.from_numpy(question.targets - 1)[:, None]) & features[..., 0].isfinite()
    askable = hit.any(1)
    return features[askable], hit[askable].int().argmax(1)


def _likeliest(features: Tensor, targets: Tensor) -> MixtureWeights:
    absent = features[..., 0] == -torch.inf
    features = features.masked_fill(absent[..., None], 0.0)
    scale = features.flatten(0, 1).std(0).clamp_min(1e-6)
    start = torch.zeros(_FEATURES)
    start[0] = scale[0]
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = ((features / scale) @ weights).masked_fill(absent, -torch.inf)
        value = F.cross_entropy(scores, targets) + _RIDGE * (weights - start).square().sum()
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]
    return MixtureWeights(*(weights.detach() / scale).tolist())
