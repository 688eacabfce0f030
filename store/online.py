"""The online store as the rest of Spoor sees it: users, histories and embeddings instead of keys and bytes.

A write names the revision it was computed from and changes a user's history and embeddings together, or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from feast import FeatureStore, FeatureView
from redis.exceptions import RedisError

from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.feature_repo.definitions import release_views
from spoor.feature_repo.names import USER_HISTORY, item_embedding_view, user_embedding_view
from spoor.feature_repo.releases import LiveRelease, live_releases
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.feast_store import (
    not_applied,
    open_feature_store,
    registered_releases,
    registered_user_views,
    registered_view,
)
from spoor.store.guarded import protobytes
from spoor.store.guarded.fallback import UnguardedStore
from spoor.store.guarded.guard import GuardedStore, GuardedWrite, ViewRow
from spoor.store.rows import (
    EMBEDDING_NUMBERS,
    HISTORY_NUMBERS,
    EmbeddingRow,
    StoredUser,
    UserWrite,
    Version,
    check_vectors,
)

T = TypeVar("T")
_CHUNK_USERS = 1000  # rows per transaction or pipeline
_HISTORY_READ = ("history", "revision", "as_of_ms")
_VERSION_READ = ("revision", "computed_at_ms")
_EMBEDDING_READ = ("embedding", "model_version", *EMBEDDING_NUMBERS)


def open_online(features: FeatureSettings) -> OnlineStore:
    """Raises UsageError where the Feast repo is missing or not applied, InfrastructureError where it cannot be read."""
    store, guard = open_feature_store(features)
    return OnlineStore(features, store, guard)


class OnlineStore:
    """Ids are strings. Every method raises InfrastructureError where the store does not answer, and UsageError for a
    release that Feast does not know. Threads may share it."""

    def __init__(self, features: FeatureSettings, store: FeatureStore, guard: GuardedStore) -> None:
        self.features = features
        self.feast = store
        self._guard = guard
        self._config = store.config
        self._user_keys = protobytes.EntityKeys(features.user_join_key, features.user_id_type)
        self._item_keys = protobytes.EntityKeys(
            features.item_join_key, features.item_id_type, setting="events.item_id_type"
        )
        self._views: dict[str, FeatureView] = {}
        self._revision = (self._history_view, "revision")

    def check(self, releases: Sequence[str] | None = None) -> None:
        """Asks everything that a command relies on before it starts: definitions applied, entities and dimensions as
        configured, the server up. `releases`: those to be written, by default the live ones in the folder."""
        self._check_entities()
        live = {release.name: release for release in live_releases(self.features.releases_folder)}
        for name in live if releases is None else releases:
            dimension = self.dimension(name)
            if name in live and live[name].dimension != dimension:
                raise UsageError(
                    f"release `{name}` has dimension {live[name].dimension}, its view in Feast {dimension}",
                    hint=f"run `feast -c {self.features.feature_repo} apply`",
                )
        self.read(["0"], list(live if releases is None else releases))

    def require_durable(self) -> None:
        """For whoever writes what nobody else has: raises UsageError for a server that is set to drop rows by itself,
        warns of one whose restart may lose them."""
        with self._errors():
            self._guard.require_durable(self._config)

    def dimension(self, release: str) -> int:
        """Floats in an embedding of the release, as its view's tag says."""
        return int(self._user_view(release).tags["dimension"])

    def read(self, user_ids: Sequence[str], releases: Sequence[str]) -> list[StoredUser]:
        """One per user, in the given order, each from one moment. A history that is no value of Feast's, or whose
        revision is none, or of which one of the two is missing, is one of no bytes, which is as unreadable as others
        that cannot be unpacked; the revision of such an embedding is none."""
        history = self._history_view
        wanted = [(history, feature) for feature in _HISTORY_READ]
        wanted += [(self._user_view(release), "revision") for release in releases]
        users = []
        rows = self._read(wanted, self._keys(user_ids))
        for packed, revision, as_of, *embeddings in rows:
            revisions = {
                release: _readable(protobytes.read_int, value)
                for release, value in zip(releases, embeddings, strict=True)
            }
            if revision is None and packed is None:
                users.append(StoredUser(None, 0, revisions))
                continue
            number = _readable(protobytes.read_int, revision)
            if number is None:
                users.append(StoredUser(b"", 0, revisions, unreadable_revision=revision or protobytes.NO_ROW))
                continue
            history = _readable(protobytes.read_bytes, packed) or b""
            users.append(StoredUser(history, number, revisions, _readable(protobytes.read_int, as_of) or 0))
        return users

    def read_embeddings(self, release: str, user_ids: Sequence[str]) -> list[EmbeddingRow | None]:
        """One per user, in the given order; None where there is no embedding, or bytes that are none of the release's
        dimension, which only others write and `spoor verify` reports."""
        view, dimension = self._user_view(release), self.dimension(release)
        wanted = [(view, feature) for feature in _EMBEDDING_READ]
        rows = self._read(wanted, self._keys(user_ids))
        return [_embedding_row(user, row, dimension) for user, row in zip(user_ids, rows, strict=True)]

    def read_versions(self, user_ids: Sequence[str], releases: Sequence[str]) -> list[dict[str, Version | None]]:
        """One per user, in the given order, each from one moment: by release the version of the embedding; None where
        there is none, or one whose version cannot be read."""
        wanted = [(self._user_view(release), feature) for release in releases for feature in _VERSION_READ]
        users = []
        for row in self._read(wanted, self._keys(user_ids)):
            numbers = [_readable(protobytes.read_int, value) for value in row]
            pairs = zip(releases, numbers[::2], numbers[1::2], strict=True)
            users.append({name: None if a is None or b is None else (a, b) for name, a, b in pairs})
        return users

    def write(self, writes: Sequence[UserWrite]) -> npt.NDArray[np.bool_]:
        """bool[n]: whether the write was done; False where the revision had moved. Raises DataError, before anything
        is written, for embeddings of wrong dimension, norm or with values that are not finite."""
        self._check_embeddings(writes)
        keys = self._keys([write.user_id for write in writes])
        return self._compare_and_set(map(self._guarded, keys, writes))

    def remove(self, revisions: Mapping[str, int]) -> npt.NDArray[np.bool_]:
        """Removes users' histories and embeddings of every release. `revisions`: user id → the revision that the
        history must still have. bool[n]: whether it had, in that order; else nothing of the user is touched. Who is
        removed is new to the next writer: one that expects a revision is refused, reloads and begins at 1.

        Raises UsageError for a store without guard, which cannot remove one user's rows."""
        if isinstance(self._guard, UnguardedStore):
            raise UsageError(
                "this online store cannot remove the rows of single users through Feast",
                hint="Redis and SQLite can; in another store, remove them with its own tools",
            )
        views = [self._history_view, *map(self._user_view, registered_releases(self.feast, self.features))]
        expected = map(protobytes.int_value, revisions.values())
        keys = self._keys(list(revisions))
        return self._compare_and_set(GuardedWrite(*pair, [], views) for pair in zip(keys, expected, strict=True))

    @property
    def lists_users(self) -> bool:
        """Whether `user_ids` can tell the users: Feast itself has no call for that."""
        return not isinstance(self._guard, UnguardedStore)

    def user_ids(self) -> Iterator[str]:
        """Every user that has a history row, forgotten ones included; one that is written meanwhile may be missing, or
        come twice."""
        keys = self._guard.entity_keys(self._config, self._revision, self._user_keys.prefix)
        while True:
            with self._errors():
                key = next(keys, None)
            if key is None:
                return
            yield self._user_keys.to_id(key)

    def user_chunks(self, count: int) -> Iterator[list[str]]:
        """As `user_ids`, at most `count` at a time."""
        users = self.user_ids()
        while chunk := list(islice(users, count)):
            yield chunk

    def write_items(
        self, release: str, item_ids: Sequence[str], vectors: npt.NDArray[np.float32], created_ms: int
    ) -> None:
        """vectors float32[n, d] of the release's items. A release's item vectors never change: no guard is needed."""
        view = self._item_view(release)
        check_vectors(vectors, np.ones(len(vectors), np.int64), release, self.dimension(release))
        for start in range(0, len(item_ids), _CHUNK_USERS):
            part = range(start, min(start + _CHUNK_USERS, len(item_ids)))
            rows = []
            for index in part:
                values = {"item_embedding": protobytes.floats_value(vectors[index])}
                rows.append((self._item_keys.to_bytes(item_ids[index]), ViewRow(view, values, created_ms, created_ms)))
            with self._errors():
                self._guard.put(self._config, rows)

    def holds_item(self, item_id: str) -> bool:
        """Whether the item's entity can hold the id: an int64 one holds no other."""
        return self._item_keys.holds(item_id)

    def count_items(self, release: str, item_ids: Sequence[str]) -> int:
        """How many of the items have a vector of the release."""
        wanted = [(self._item_view(release), "item_embedding")]
        keys = [self._item_keys.to_bytes(item) for item in item_ids if self.holds_item(item)]
        return sum(value is not None for (value,) in self._read(wanted, keys))

    def read_items(
        self, release: str, item_ids: Sequence[str]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """float32[n, d] of the release's item vectors, zeros where there is none, and bool[n]: whether there is one."""
        view, dimension = self._item_view(release), self.dimension(release)
        vectors = np.zeros((len(item_ids), dimension), np.float32)
        known = [index for index, item in enumerate(item_ids) if self.holds_item(item)]
        keys = [self._item_keys.to_bytes(item_ids[index]) for index in known]
        found = np.zeros(len(item_ids), bool)
        for index, (value,) in zip(known, self._read([(view, "item_embedding")], keys), strict=True):
            if value is not None:
                vectors[index] = protobytes.read_floats(value, dimension)
                found[index] = True
        return vectors, found

    def remove_release(self, release: str) -> None:
        """Removes every embedding of the release, users' and items', whether its views are still registered or not."""
        for view in release_views(self.features, LiveRelease(release, 0, 0, release)):
            with self._errors():
                self._guard.delete_rows(self._config, self._views.pop(view.name, view))

    def _compare_and_set(self, writes: Iterator[GuardedWrite]) -> npt.NDArray[np.bool_]:
        done: list[bool] = []
        while part := list(islice(writes, _CHUNK_USERS)):  # laid out chunk by chunk: few objects are alive at once
            with self._errors():
                done += self._guard.compare_and_set(self._config, self._revision, part)
        return np.array(done, bool)

    def _guarded(self, key: bytes, write: UserWrite) -> GuardedWrite:
        if not (write.revision >= write.expected_revision and write.revision > 0):
            raise ValueError(f"revision {write.revision} written over {write.expected_revision}")
        rows = []
        if write.revision > write.expected_revision:
            values = {"history": protobytes.bytes_value(write.history), **_numbers(write, HISTORY_NUMBERS)}
            rows.append(ViewRow(self._history_view, values, write.event_time_ms, write.as_of_ms))
        for row in write.embeddings:
            if row.revision != write.revision or row.user_id != write.user_id:
                raise ValueError(f"embedding of {row.user_id!r}, revision {row.revision}, in {write}")
            rows.append(self._embedding_view_row(row))
        expected = protobytes.int_value(write.expected_revision) if write.expected_revision else protobytes.NO_ROW
        expected = write.unreadable_revision or expected
        removed: list[FeatureView] = []
        if write.forgets:
            written = {row.view.name for row in rows}
            views = registered_user_views(self.feast, self.features)
            removed = [self._view(name) for name in views if name not in written]
        return GuardedWrite(key, expected, rows, removed)

    def _embedding_view_row(self, row: EmbeddingRow) -> ViewRow:
        values = {
            "embedding": protobytes.floats_value(row.embedding),
            "model_version": protobytes.string_value(row.model_version),
            **_numbers(row, EMBEDDING_NUMBERS),
        }
        return ViewRow(self._user_view(row.model_version), values, row.event_time_ms, row.created_ms)

    def _check_embeddings(self, writes: Sequence[UserWrite]) -> None:
        def release_of(row: EmbeddingRow) -> str:
            return row.model_version

        rows = sorted((row for write in writes for row in write.embeddings), key=release_of)
        for release, group in groupby(rows, key=release_of):
            dimension, members = self.dimension(release), list(group)
            for row in members:
                if row.embedding.shape != (dimension,):
                    raise DataError(
                        f"embedding of user {row.user_id!r} has shape {row.embedding.shape}, "
                        f"release `{release}` has dimension {dimension}",
                        hint="apply the definitions of the release that computed it",
                    )
            used = np.array([row.events_used for row in members])
            check_vectors(np.stack([row.embedding for row in members]), used, release, dimension)

    def _read(self, wanted: Sequence[tuple[FeatureView, str]], keys: Sequence[bytes]) -> Iterator[list[bytes | None]]:
        for start in range(0, len(keys), _CHUNK_USERS):
            with self._errors():
                rows = self._guard.read_values(self._config, wanted, keys[start : start + _CHUNK_USERS])
            yield from rows

    def _keys(self, user_ids: Sequence[str]) -> list[bytes]:
        return [self._user_keys.to_bytes(user) for user in user_ids]

    @property
    def _history_view(self) -> FeatureView:
        return self._view(self.features.named(USER_HISTORY))

    def _item_view(self, release: str) -> FeatureView:
        return self._view(self.features.named(item_embedding_view(self._known(release))))

    def _user_view(self, release: str) -> FeatureView:
        return self._view(self.features.named(user_embedding_view(self._known(release))))

    def _known(self, release: str) -> str:
        """The release's name. Raises UsageError if Feast has no view for it."""
        name = self.features.named(user_embedding_view(release))
        if name not in self._views:
            try:
                self._view(name)
            except UsageError:
                known = ", ".join(registered_releases(self.feast, self.features)) or "none"
                raise UsageError(
                    f"Feast does not know the release `{release}`; it knows: {known}",
                    hint=f"put its folder into `{self.features.releases_folder}` and run "
                    f"`feast -c {self.features.feature_repo} apply`",
                ) from None
        return release

    def _view(self, name: str) -> FeatureView:
        if name not in self._views:
            view = registered_view(self.feast, self.features, name)
            with self._errors():
                self._guard.create_tables(self._config, [view])
            self._views[name] = view
        return self._views[name]

    def _check_entities(self) -> None:
        settings, history = self.features, self._history_view.name
        for view, join_key in (
            (history, settings.user_join_key),
            *(
                (settings.named(item_embedding_view(r)), settings.item_join_key)
                for r in registered_releases(self.feast, self.features)
            ),
        ):
            found = {column.name: str(column.dtype) for column in self._view(view).entity_columns}
            id_type = settings.user_id_type if view == history else settings.item_id_type
            if found != {join_key: id_type.capitalize()}:
                raise not_applied(settings, f"view `{view}` has keys {found}, the settings say {join_key}: {id_type}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        settings = self._config.online_store
        assert settings is not None
        try:
            yield
        except (sqlite3.Error, RedisError, OSError) as error:
            where = getattr(settings, "path", "") or "its server"
            hint = {
                "redis": "start Redis, or mend connection_string in feature_store.yaml",
                "sqlite": f"check that the folder of `{where}` is there, can be written and has space",
            }.get(settings.type, "check online_store in feature_store.yaml")
            raise InfrastructureError(f"the online store ({settings.type}) failed: {error}", hint=hint) from error


def _readable(read: Callable[[bytes], T], value: bytes | None) -> T | None:
    """None where there is no value, or one that cannot be read."""
    try:
        return None if value is None else read(value)
    except DataError:
        return None


def _numbers(row: EmbeddingRow | UserWrite, names: Sequence[str]) -> dict[str, bytes]:
    return {name: protobytes.int_value(getattr(row, name)) for name in names}


def _embedding_row(user: str, row: list[bytes | None], dimension: int) -> EmbeddingRow | None:
    if any(value is None for value in row):
        return None
    embedding, version, *numbers = (value or b"" for value in row)
    try:
        found = EmbeddingRow(
            user_id=user,
            embedding=protobytes.read_floats(embedding, dimension),
            model_version=protobytes.read_string(version),
            **dict(zip(EMBEDDING_NUMBERS, map(protobytes.read_int, numbers), strict=True)),
        )
    except DataError:
        return None
    return found if found.embedding.shape == (dimension,) else None
