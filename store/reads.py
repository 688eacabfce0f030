"""Reads for callers inside Spoor and for notebooks. A ranker needs neither: it calls Feast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from feast import FeatureService, FeatureStore

from spoor.base.errors import DataError
from spoor.feature_repo.names import ITEM_ACTIVITY, USER_ACTIVITY, USER_HISTORY, ranker_service
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.feast_store import open_feature_store
from spoor.store.offline import USE_DUCKDB, open_offline
from spoor.store.online import OnlineStore, open_online


def user_vectors(
    source: FeatureSettings | OnlineStore, release: str, user_ids: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """float32[U, d] and bool[U]: each user's embedding, and whether there is one.

    A user without history, or whose embedding is not computed yet, gets zeros and False: a dot product with zeros is
    0, so the ranker's other features decide. Feast's own read gives nulls instead.
    """
    online = source if isinstance(source, OnlineStore) else open_online(source)
    vectors = np.zeros((len(user_ids), online.dimension(release)), np.float32)
    rows = online.read_embeddings(release, user_ids)
    for index, row in enumerate(rows):
        if row is not None:
            vectors[index] = row.embedding
    return vectors, np.array([row is not None for row in rows], bool)


def historical_features(features: FeatureSettings, entities: pd.DataFrame, release: str) -> pd.DataFrame:
    """The rows of `entities` (join keys, event_timestamp, any label columns) with the ranker's features of the release
    as they could be known at each row's time: nothing computed from later events or by a model trained later.

    Raises DataError if Feast does not answer with exactly one row per given row.
    """
    store, _ = open_feature_store(features)
    service = store.get_feature_service(features.named(ranker_service(release)))
    # Where `feast apply` ran without Spoor, a view without rows has no file yet.
    shown = {projection.name for projection in service.feature_view_projections}
    examples = [view for view in (USER_ACTIVITY, ITEM_ACTIVITY) if features.named(view) in shown]
    open_offline(features).prepare(examples)
    return _all_rows(store, entities, service)


def historical_histories(features: FeatureSettings, entities: pd.DataFrame) -> pd.DataFrame:
    """The rows of `entities` (user join key, event_timestamp, any other columns) with the packed `history` and its
    `revision` as they could be known at each row's time; null where the user had none.

    Raises DataError if Feast does not answer with exactly one row per given row.
    """
    store, _ = open_feature_store(features)
    open_offline(features).prepare()
    view = features.named(USER_HISTORY)
    return _all_rows(store, entities, [f"{view}:history", f"{view}:revision"])


def _all_rows(store: FeatureStore, entities: pd.DataFrame, features: FeatureService | list[str]) -> pd.DataFrame:
    job = store.get_historical_features(entity_df=entities, features=features, filter_by_created_timestamp=True)
    try:
        found = job.to_df()
    except NotImplementedError as error:  # of dask, which cannot sort a partition of nulls
        raise DataError(f"Feast's dask store cannot read these rows: {error}", hint=USE_DUCKDB) from error
    if len(found) != len(entities):
        raise DataError(
            f"Feast answered {len(entities)} rows with {len(found)}: its dask store leaves out rows that repeat a key "
            "and time, and rows before a key's first value",
            hint=USE_DUCKDB,
        )
    return found
