"""Guarded writes to Feast's SQLite online store: one BEGIN IMMEDIATE transaction per batch, with write-ahead log.

The tables are Feast's, so readers use the plain type `sqlite`. One connection per object, shared by its threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import RLock

from feast import FeatureView
from feast.infra.online_stores.sqlite import SqliteOnlineStore, adapt_datetime_epoch
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.utils import to_naive_utc

from spoor.store.guarded.guard import GuardedWrite, ViewRow, stored_name, utc
from spoor.store.guarded.protobytes import NO_ROW, read_int, read_string

_BUSY_SECONDS = 60  # how long a writer waits for the others
_MAX_PARAMETERS = 900  # SQLite's oldest limit on `?` in one statement is 999
_STRING_TAG = Value.STRING_VAL_FIELD_NUMBER << 3 | 2
_INT64_TAG = Value.INT64_VAL_FIELD_NUMBER << 3


class GuardedSqliteOnlineStore(SqliteOnlineStore):
    """Feast insists that the name of such a class ends like its parent's."""

    def __init__(self) -> None:
        self._lock = RLock()

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        if self._conn is None:
            connection = super()._get_conn(config)
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # offsets are committed on the strength of a write
        assert self._conn is not None
        return self._conn

    def read_values(
        self, config: RepoConfig, wanted: Sequence[tuple[FeatureView, str]], keys: Sequence[bytes]
    ) -> list[list[bytes | None]]:
        columns: dict[str, dict[str, int]] = {}
        for column, (view, feature) in enumerate(wanted):
            columns.setdefault(_table(config, view), {})[feature] = column
        found: dict[bytes, list[bytes | None]] = {key: [None] * len(wanted) for key in keys}
        with self._transaction(config, "BEGIN") as connection:
            for table, features in columns.items():
                for key, feature, value in _select(connection, table, list(features), keys):
                    found[key][features[feature]] = value
        return [found[key] for key in keys]

    def compare_and_set(
        self, config: RepoConfig, guard: tuple[FeatureView, str], writes: Sequence[GuardedWrite]
    ) -> list[bool]:
        view, feature = guard
        done: list[bool] = []
        accepted: list[tuple[bytes, ViewRow]] = []
        removed: list[tuple[bytes, FeatureView]] = []
        with self._transaction(config, "BEGIN IMMEDIATE") as connection:
            rows = _select(connection, _table(config, view), [feature], [write.key for write in writes])
            current = {key: value for key, _, value in rows}
            for write in writes:
                done.append(current.get(write.key, NO_ROW) == write.expected)
                if done[-1]:
                    accepted += [(write.key, row) for row in write.rows]
                    removed += [(write.key, gone) for gone in write.removed]
                    for row in write.rows:
                        if row.view.name == view.name:
                            current[write.key] = row.values[feature]
            for key, gone in removed:
                connection.execute(f'DELETE FROM "{_table(config, gone)}" WHERE entity_key = ?', (key,))
            _upsert(connection, config, accepted)
        return done

    def put(self, config: RepoConfig, rows: Sequence[tuple[bytes, ViewRow]]) -> None:
        with self._transaction(config, "BEGIN IMMEDIATE") as connection:
            _upsert(connection, config, rows)

    def entity_keys(self, config: RepoConfig, guard: tuple[FeatureView, str], prefix: bytes) -> Iterator[bytes]:
        view, feature = guard
        query = (
            f'SELECT entity_key FROM "{_table(config, view)}" '
            "WHERE feature_name = ? AND entity_key > ? ORDER BY entity_key LIMIT 10000"
        )
        last = b""
        while True:  # page by page, so that no read transaction stays open between them
            with self._transaction(config, "BEGIN") as connection:
                page = [key for (key,) in connection.execute(query, (feature, last))]
            yield from (key for key in page if key.startswith(prefix))
            if not page:
                return
            last = page[-1]

    def require_durable(self, config: RepoConfig) -> None:
        """A committed transaction stays."""

    def create_tables(self, config: RepoConfig, views: Sequence[FeatureView]) -> None:
        with self._lock, self._get_conn(config):
            self.update(config, [], views, [], [], partial=True)

    def delete_rows(self, config: RepoConfig, view: FeatureView) -> None:
        table = _table(config, view)
        with self._transaction(config, "BEGIN IMMEDIATE") as connection:
            exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            if exists:
                connection.execute(f'DELETE FROM "{table}"')

    @contextmanager
    def _transaction(self, config: RepoConfig, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._get_conn(config)
            connection.execute(begin)
            try:
                yield connection
                connection.commit()
            finally:
                if connection.in_transaction:
                    connection.rollback()


def _table(config: RepoConfig, view: FeatureView) -> str:
    return f"{config.project}_{stored_name(config, view)}"


def _select(
    connection: sqlite3.Connection, table: str, features: Sequence[str], keys: Sequence[bytes]
) -> Iterator[tuple[bytes, str, bytes]]:
    """(key, feature, value) of every row that is there."""
    step = _MAX_PARAMETERS - len(features)
    names = ",".join("?" * len(features))
    for start in range(0, len(keys), step):
        part = keys[start : start + step]
        places = ",".join("?" * len(part))
        yield from connection.execute(
            f'SELECT entity_key, feature_name, value FROM "{table}" '
            f"WHERE entity_key IN ({places}) AND feature_name IN ({names})",
            (*part, *features),
        )


def _upsert(connection: sqlite3.Connection, config: RepoConfig, rows: Sequence[tuple[bytes, ViewRow]]) -> None:
    cells: dict[str, list[tuple[object, ...]]] = {}
    for key, row in rows:
        event, created = _stored_time(row.event_time_ms), _stored_time(row.created_ms)
        cells.setdefault(_table(config, row.view), []).extend(
            (key, feature, value, _text(value), event, created) for feature, value in row.values.items()
        )
    for table, values in cells.items():
        connection.executemany(
            f'INSERT INTO "{table}" (entity_key, feature_name, value, value_text, event_ts, created_ts) '
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (entity_key, feature_name) DO UPDATE SET "
            "value = excluded.value, value_text = excluded.value_text, "
            "event_ts = excluded.event_ts, created_ts = excluded.created_ts",
            values,
        )


@lru_cache(4096)  # a user's rows share their times, and a batch its own
def _stored_time(time_ms: int) -> int:
    """As Feast's reader expects it: whole seconds, in local time, by Feast's own adapter."""
    return adapt_datetime_epoch(to_naive_utc(utc(time_ms)))


def _text(value: bytes) -> str | None:
    """What Feast keeps beside a string or number for its filters."""
    if value[0] == _INT64_TAG:
        return _number_text(value)
    return read_string(value) if value[0] == _STRING_TAG else None


@lru_cache(4096)  # a user's rows share revision and times
def _number_text(value: bytes) -> str:
    return str(read_int(value))
