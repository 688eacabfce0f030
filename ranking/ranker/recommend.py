"""The demo's ranker at work: features from the online store, the best unseen items back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from spoor.ranking.features.dataset import USER_VECTOR, embedding_inputs
from spoor.ranking.features.online import OnlineFeatures
from spoor.ranking.ranker.ranker import Ranker


@dataclass(frozen=True)
class Recommendation:
    item_id: str
    title: str
    score: float


@dataclass(frozen=True)
class Served:
    """`row`: the best item's feature row, by feature name, as Feast returned it; None = null."""

    user_id: str
    recommendations: tuple[Recommendation, ...]
    row: Mapping[str, Any]

    @property
    def has_embedding(self) -> bool:
        return self.row.get(USER_VECTOR) is not None


class Recommender:
    """A ranker beside the features that it reads. `titles` by item id are the catalogue."""

    def __init__(self, online: OnlineFeatures, ranker: Ranker, titles: Mapping[str, str]) -> None:
        self._online = online
        self._ranker = ranker
        self._titles = titles

    def recommend(self, user_id: str, *, seen: Collection[str] = (), count: int = 10) -> Served:
        """The `count` best items of the catalogue that are not in `seen`, best first; equal scores by item id."""
        left_out = set(seen)
        items = sorted(item for item in self._titles if item not in left_out)
        return self.rank(user_id, items, self._online.read(user_id, items), count=count)

    def rank(self, user_id: str, items: Sequence[str], features: pa.Table, *, count: int = 10) -> Served:
        """The best of `items`, from what `OnlineFeatures.read` returned for them, now or earlier."""
        if not items:
            return Served(user_id, (), {})
        scores = self._ranker.score(embedding_inputs(features))
        best = [int(k) for k in np.argsort(-scores, kind="stable")[:count]]
        chosen = tuple(Recommendation(items[k], self._titles[items[k]], float(scores[k])) for k in best)
        return Served(user_id, chosen, features.slice(best[0], 1).to_pylist()[0])
