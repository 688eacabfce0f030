"""A fine-tuned ranker at work: plain Feast's online answers to scores, early fusion included.

Per request: one read of the user's packed history, one of the features of the user beside each candidate; the history
goes through the context pass once, the candidates through the crossing pass together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from ranking.dataset import ROW, Floats
from ranking.impressions import Impressions
from ranking.recommend import OnlineFeatures
from ranking.rows import read_rows
from ranking.tuned import TunedRanker


@dataclass(frozen=True, eq=False)
class RankerServer:
    """`items`: the attribute table with `item_id`; ids alone are enough for a ranker without attributes."""

    online: OnlineFeatures
    ranker: TunedRanker
    items: pa.Table

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
            labels=np.zeros((count, len(self.ranker.tasks)), np.float32),
            ages_days=np.zeros(count, np.float32),  # ages matter in training only
            tasks=self.ranker.tasks,
        )
        if not count:
            return asked.labels
        data = read_rows(
            asked,
            self._features_of(user_id),
            self._history_of(user_id),
            items=self.items,
            layout=self.ranker.layout,
            dimension=self.ranker.model.fusion.encoder.config.dimension,
        )
        return self.ranker.score(data)

    def _features_of(self, user_id: str) -> Callable[[pd.DataFrame], pa.Table]:
        def read(rows: pd.DataFrame) -> pa.Table:
            table = self.online.read(user_id, rows["item_id"].tolist())
            return table.append_column(ROW, pa.array(rows[ROW].to_numpy()))

        return read

    def _history_of(self, user_id: str) -> Callable[[pd.DataFrame], pa.Table]:
        def read(rows: pd.DataFrame) -> pa.Table:
            history, revision = self.online.read_history(user_id)
            columns = {"history": pa.array([history], pa.binary()), "revision": pa.array([revision], pa.int64())}
            return pa.table(columns | {ROW: pa.array(rows[ROW].to_numpy())})

        return read
