"""A fine-tuned ranker at work: plain Feast's online answers to scores, early fusion included.

Per request: one read of the user's packed history, one of the features of the user beside each candidate; the history
goes through the context pass once, the candidates through the crossing pass together. A user without a stored history
is scored as a new one; the server counts them, and logs the first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from spoor.base.errors import UsageError
from spoor.ranking.features.dataset import ROW, Floats
from spoor.ranking.features.impressions import Impressions
from spoor.ranking.features.online import OnlineFeatures
from spoor.ranking.ranker.rows import read_rows
from spoor.ranking.ranker.tuned import TunedRanker

_log = logging.getLogger(__name__)


class RankerServer:
    """`requests`: scored so far; `without_history`: those of them whose user has no history online."""

    def __init__(self, online: OnlineFeatures, ranker: TunedRanker, items: pa.Table) -> None:
        """`items`: the attribute table with `item_id`; ids alone are enough for a ranker without attributes.

        Raises UsageError for a ranker of frozen late-last where `online` reads vectors of another space, which are
        strange to it though they may have the same length."""
        space = ranker.about.get("space", ranker.about["release"])
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
        """Probabilities float32 [candidates, K] of the tasks for items shown now, in their order. `time_ms`:
        of the request, UTC; `surface`: where they are shown."""
        count = len(candidates)
        asked = Impressions(
            user_ids=(user_id,),
            surfaces=(surface,),
            times_ms=np.array([time_ms], np.int64),
            offsets=np.array([0, count], np.int64),
            item_ids=tuple(candidates),
            labels=np.zeros((count, len(self._ranker.tasks)), np.float32),
            ages_days=np.zeros(count, np.float32),  # ages matter in training only
            tasks=self._ranker.tasks,
        )
        if not count:
            return asked.labels
        data = read_rows(
            asked,
            self._features_of(user_id),
            self._history_of(user_id),
            items=self._items,
            layout=self._ranker.layout,
            dimension=self._ranker.model.fusion.encoder.config.dimension,
        )
        self._count(user_id, stored=bool(data.stored.all()))
        return self._ranker.score(data)

    def _count(self, user_id: str, *, stored: bool) -> None:
        self.requests += 1
        if stored:
            return
        self.without_history += 1
        if self.without_history == 1:
            _log.warning("user %r has no history online: scored as a new user; later ones are counted only", user_id)

    def _features_of(self, user_id: str) -> Callable[[pd.DataFrame], pa.Table]:
        def read(rows: pd.DataFrame) -> pa.Table:
            table = self._online.read(user_id, rows["item_id"].tolist())
            return table.append_column(ROW, pa.array(rows[ROW].to_numpy()))

        return read

    def _history_of(self, user_id: str) -> Callable[[pd.DataFrame], pa.Table]:
        def read(rows: pd.DataFrame) -> pa.Table:
            history, revision = self._online.read_history(user_id)
            columns = {"history": pa.array([history], pa.binary()), "revision": pa.array([revision], pa.int64())}
            return pa.table(columns | {ROW: pa.array(rows[ROW].to_numpy())})

        return read
