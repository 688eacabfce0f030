"""Spoor's writes for any other Feast online store: read, compare, write, read again. Not atomic, and it says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime

from feast import FeatureView
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig

from spoor.base.errors import UsageError
from spoor.store.guarded.guard import GuardedWrite, ViewRow, utc
from spoor.store.guarded.protobytes import KEY_VERSION, NO_ROW

_log = logging.getLogger(__name__)


class UnguardedStore:
    """Speaks only Feast's public interface. Two writers at the same moment may lose an update; run one, or sweep."""

    def __init__(self, store: OnlineStore) -> None:
        self.store = store
        self._warned = False

    def read_values(
        self, config: RepoConfig, wanted: Sequence[tuple[FeatureView, str]], keys: Sequence[bytes]
    ) -> list[list[bytes | None]]:
        entities = [_entity(key) for key in keys]
        views = {view.name: view for view, _ in wanted}
        rows: dict[str, list[dict[str, Value]]] = {}
        for name, view in views.items():
            features = [feature for of, feature in wanted if of.name == name]
            answer = self.store.online_read(config, view, entities, features) if entities else []
            rows[name] = [values or {} for _, values in answer]
        return [
            [_serialised(rows[view.name][index].get(feature)) for view, feature in wanted] for index in range(len(keys))
        ]

    def compare_and_set(
        self, config: RepoConfig, guard: tuple[FeatureView, str], writes: Sequence[GuardedWrite]
    ) -> list[bool]:
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s has no guarded writes: a revision is read, compared and written in separate steps, so two "
                "writers at the same moment may lose an update; use Redis or SQLite, or run one writer",
                type(self.store).__name__,
            )
        current = self._guards(config, guard, writes)
        accepted = [write for write, now in zip(writes, current, strict=True) if now == write.expected]
        self.put(config, [(write.key, row) for write in accepted for row in [*write.rows, *_nulls(write)]])
        after = self._guards(config, guard, writes)
        return [
            now == write.expected and then == _revision_after(write, guard)
            for write, now, then in zip(writes, current, after, strict=True)
        ]

    def put(self, config: RepoConfig, rows: Sequence[tuple[bytes, ViewRow]]) -> None:
        by_view: dict[str, list[tuple[bytes, ViewRow]]] = {}
        for key, row in rows:
            by_view.setdefault(row.view.name, []).append((key, row))
        for group in by_view.values():
            data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
                (
                    _entity(key),
                    {feature: Value.FromString(value) for feature, value in row.values.items()},
                    utc(row.event_time_ms),
                    utc(row.created_ms),
                )
                for key, row in group
            ]
            self.store.online_write_batch(config, group[0][1].view, data, None)

    def entity_keys(self, config: RepoConfig, guard: tuple[FeatureView, str], prefix: bytes) -> Iterator[bytes]:
        raise UsageError(
            f"{type(self.store).__name__} cannot list its users through Feast",
            hint="use the users in the lake instead, or Redis or SQLite as the online store",
        )

    def require_durable(self, config: RepoConfig) -> None:
        """Feast has no question for it."""

    def create_tables(self, config: RepoConfig, views: Sequence[FeatureView]) -> None:
        self.store.update(config, [], views, [], [], partial=True)

    def delete_rows(self, config: RepoConfig, view: FeatureView) -> None:
        self.store.update(config, [view], [], [], [], partial=True)

    def _guards(
        self, config: RepoConfig, guard: tuple[FeatureView, str], writes: Sequence[GuardedWrite]
    ) -> list[bytes]:
        return [value or NO_ROW for (value,) in self.read_values(config, [guard], [w.key for w in writes])]


def _revision_after(write: GuardedWrite, guard: tuple[FeatureView, str]) -> bytes:
    view, feature = guard
    written = [row.values[feature] for row in write.rows if row.view.name == view.name]
    return written[-1] if written else write.expected


def _nulls(write: GuardedWrite) -> list[ViewRow]:
    """Feast's interface cannot remove one entity's rows: nulls are written over them."""
    when = write.rows[0].created_ms
    null = Value().SerializeToString()
    return [ViewRow(view, {f.name: null for f in view.features}, when, when) for view in write.removed]


def _entity(key: bytes) -> EntityKey:
    return deserialize_entity_key(key, KEY_VERSION)


def _serialised(value: Value | None) -> bytes | None:
    return value.SerializeToString() if value is not None and value.WhichOneof("val") else None
