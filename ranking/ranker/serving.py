"""Online serving of a ranker: from plain Feast reads to scores and the best unseen items, early fusion included.

Per request: one read of the features for the user and each candidate. If the ranker reads histories, also one read of
the user's packed history, one context pass over it, and one crossing pass over all candidates. A user without a stored
history is scored as a new user; the server counts such requests and logs the first.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from spoor.base.errors import UsageError
from spoor.ranking.features.dataset import ROW, USER_VECTOR, Floats
from spoor.ranking.features.impressions import Impressions
from spoor.ranking.features.online import OnlineFeatures
from spoor.ranking.ranker.rows import rows_of
from spoor.ranking.ranker.tuned import TunedRanker

_log = logging.getLogger(__name__)


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


class RankerServer:
    """`requests`: number scored so far; `without_history`: those whose user has no history online, if the ranker reads
    histories."""

    def __init__(self, online: OnlineFeatures, ranker: TunedRanker, items: pa.Table) -> None:
        """`items`: the attribute table with `item_id`; ids alone are enough for a ranker without attributes.

        Raises UsageError if a frozen late-last ranker records another vector space than that of `online`: vectors of
        another space are meaningless to it, even at the same length."""
        space = ranker.about.get("space", ranker.about.get("release", online.space))
        if ranker.model.fusion.config.reads_vectors and online.space != space:
            raise UsageError(
                f"the ranker reads vectors in the space of release `{space}`, those of `{online.release}` are in the "
                f"space of `{online.space}`",
                hint=f"read the features of `{space}`, or of a release that was aligned to it",
            )
        self._online = online
        self._ranker = ranker
        self._items = items
        self.requests = 0
        self.without_history = 0

    def score(self, user_id: str, candidates: Sequence[str], *, time_ms: int, surface: str = "") -> Floats:
        """Task probabilities float32 [candidates, K], in the order of the candidates. `time_ms`: of the request, UTC;
        `surface`: where the items are shown."""
        return self._score(user_id, candidates, self._online.read(user_id, candidates), time_ms, surface)

    def recommend(
        self, user_id: str, titles: Mapping[str, str], *, time_ms: int, seen: Collection[str] = (), count: int = 10
    ) -> Served:
        """The `count` best items of `titles` that are not in `seen`, best first; equal scores by item id."""
        items = sorted(titles.keys() - set(seen))
        features = self._online.read(user_id, items)
        return self.rank(user_id, features.append_column("item_id", [items]), titles, time_ms=time_ms, count=count)

    def rank(
        self, user_id: str, features: pa.Table, titles: Mapping[str, str], *, time_ms: int, count: int = 10
    ) -> Served:
        """The best items. `features`: a result of `OnlineFeatures.read`, with a column `item_id` added."""
        items = features["item_id"].to_pylist()
        if not items:
            return Served(user_id, (), {})
        features = features.drop_columns(["item_id"])
        scores = self._score(user_id, items, features, time_ms)[:, 0]
        best = [int(k) for k in np.argsort(-scores, kind="stable")[:count]]
        chosen = tuple(Recommendation(items[k], titles[items[k]], float(scores[k])) for k in best)
        return Served(user_id, chosen, features.slice(best[0], 1).to_pylist()[0])

    def _score(
        self, user_id: str, candidates: Sequence[str], features: pa.Table, time_ms: int, surface: str = ""
    ) -> Floats:
        count = len(candidates)
        asked = Impressions(
            user_ids=(user_id,),
            surfaces=(surface,),
            times_ms=np.array([time_ms], np.int64),
            offsets=np.array([0, count], np.int64),
            item_ids=tuple(candidates),
            labels=np.zeros((count, len(self._ranker.tasks)), np.float32),
            ages_days=np.zeros(count, np.float32),  # ages are used in training only
            tasks=self._ranker.tasks,
        )
        if not count:
            return asked.labels
        fusion = self._ranker.model.fusion

        def read_history(rows: pd.DataFrame) -> pa.Table:
            history, revision = self._online.read_history(user_id)
            columns = {"history": pa.array([history], pa.binary()), "revision": pa.array([revision], pa.int64())}
            return pa.table(columns | {ROW: pa.array(rows[ROW].to_numpy())})

        data = rows_of(
            asked,
            features,
            read_history if fusion.config.reads_histories else None,
            items=self._items,
            layout=self._ranker.layout,
            dimension=fusion.dimension,
        )
        self._count(user_id, stored=bool(data.stored.all()))
        return self._ranker.score(data)

    def _count(self, user_id: str, *, stored: bool) -> None:
        self.requests += 1
        if stored or not self._ranker.model.fusion.config.reads_histories:
            return
        self.without_history += 1
        if self.without_history == 1:
            _log.warning("user %r has no history online: scored as a new user; later ones are counted only", user_id)
