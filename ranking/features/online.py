"""A ranker's features, vectors and histories from Feast: online by plain reads, offline by point-in-time joins.

Converts Spoor's ids to the company's join keys, in the type of its Feast entities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from spoor.activity.fields import is_int64
from spoor.base.errors import DataError
from spoor.feature_repo.names import USER_HISTORY, ranker_service
from spoor.feature_repo.settings import FeatureSettings
from spoor.ranking.features.dataset import ITEM_COLUMNS, ITEM_VECTOR, USER_COLUMNS, USER_VECTOR, Reader
from spoor.store.feast_store import open_feature_store
from spoor.store.reads import historical_features, historical_histories

_FEATURES = (*USER_COLUMNS, *ITEM_COLUMNS, USER_VECTOR, ITEM_VECTOR)
_CHUNK_ITEMS = 500  # entity rows per online read


class OnlineFeatures:
    """Reads one release's feature service online by plain Feast. Opens Feast once."""

    def __init__(self, features: FeatureSettings, release: str) -> None:
        """Raises UsageError if the Feast repo is not applied."""
        self.release = release
        self._features = features
        self._store, _ = open_feature_store(features)
        self._service = self._store.get_feature_service(features.named(ranker_service(release)))
        self.space = self._service.tags.get(
            "space", release
        )  # rankers trained on a release of this space may read these vectors

    def read(self, user_id: str, items: Sequence[str]) -> pa.Table:
        """The service's features for one user with each item, in the order of the items."""
        user = _entity_id(user_id, self._features.user_id_type)
        parts = [pa.table({name: _typed(name, []) for name in _FEATURES})]
        for start in range(0, len(items), _CHUNK_ITEMS):
            rows = [
                {
                    self._features.user_join_key: user,
                    self._features.item_join_key: _entity_id(item, self._features.item_id_type),
                }
                for item in items[start : start + _CHUNK_ITEMS]
            ]
            answer = self._store.get_online_features(features=self._service, entity_rows=rows).to_dict()
            parts.append(pa.table({name: _typed(name, answer.get(name, [None] * len(rows))) for name in _FEATURES}))
        return pa.concat_tables(parts)

    def read_history(self, user_id: str) -> tuple[bytes | None, int | None]:
        """The user's packed history and its revision; None if missing."""
        history = self._features.named(USER_HISTORY)
        answer = self._store.get_online_features(
            features=[f"{history}:history", f"{history}:revision"],
            entity_rows=[{self._features.user_join_key: _entity_id(user_id, self._features.user_id_type)}],
        ).to_dict()
        return answer["history"][0], answer["revision"][0]


def feast_reader(features: FeatureSettings, release: str) -> Reader:
    """Reads the release's service at each row's time through Feast. Raises UsageError if it is not applied."""

    def read(rows: pd.DataFrame) -> pa.Table:
        entities = rows.rename(columns={"user_id": features.user_join_key, "item_id": features.item_join_key})
        id_types = {
            features.user_join_key: features.user_id_type,
            features.item_join_key: features.item_id_type,
        }
        for key, id_type in id_types.items():
            entities[key] = [_entity_id(value, id_type) for value in entities[key]]
        found = historical_features(features, entities, release)
        extra = [name for name in rows.columns if name not in ("user_id", "item_id", "event_timestamp")]
        none = [None] * len(found)  # a repo without the example views lacks their features
        columns = {name: _typed(name, list(found[name]) if name in found else none) for name in _FEATURES}
        return pa.table(columns | {name: pa.array(list(found[name])) for name in extra})

    return read


def history_reader(features: FeatureSettings) -> Callable[[pd.DataFrame], pa.Table]:
    """Reads packed histories and their revisions at each row's time through Feast: a `rows.HistoryReader`."""

    def read(rows: pd.DataFrame) -> pa.Table:
        entities = rows.rename(columns={"user_id": features.user_join_key})
        entities[features.user_join_key] = [_entity_id(v, features.user_id_type) for v in rows["user_id"]]
        found = historical_histories(features, entities)
        extra = {
            name: pa.array(list(found[name])) for name in rows.columns if name not in ("user_id", "event_timestamp")
        }
        return pa.table(
            {
                "history": pa.array(list(found["history"]), pa.binary(), from_pandas=True),
                "revision": pa.array(list(found["revision"]), pa.float64(), from_pandas=True).cast(pa.int64()),
            }
            | extra
        )

    return read


def _entity_id(value: Any, id_type: str) -> str | int:
    """The id in the entity's type. Raises DataError for an id that the type cannot represent: `007` is not 7."""
    if id_type == "string":
        return value
    if not is_int64(str(value)):
        raise DataError(
            f"id {value!r} is no 64-bit integer in its shortest form, as Feast's entity needs it",
            hint="leave its events out, or set events.user_id_type or item_id_type to string",
        )
    return int(value)


def _typed(name: str, values: Sequence[Any]) -> pa.Array:
    """A feature column with a fixed type, also if all values are null."""
    kind = pa.list_(pa.float32()) if name in (USER_VECTOR, ITEM_VECTOR) else pa.float64()
    return pa.array(values, kind, from_pandas=True)
