"""Deleted users and their cut-off times: a file of the lake that holds no ids.

    FOLDER/_forgotten.json      {"key": 32 random bytes, "users": {keyed hash of the id: [through_ms, at_ms]}}

`through_ms`: the cut-off; events up to and including this time are deleted. `at_ms`: wall clock of the deletion; rows
computed earlier may contain deleted events. The hash is BLAKE2b with the lake's own key: only a reader who has an id
can find out whether it was deleted. `spoor forget --expire` drops entries that no source can restore.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spoor.activity.history import NEVER, Int64s
from spoor.base.errors import DataError
from spoor.base.files import atomic_write

_HASH_BYTES = 16


class ForgottenUsers:
    """The file's content when it was read. Raises DataError if the file is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key, self._users = _read(path)

    def __len__(self) -> int:
        return len(self._users)

    def add(self, user_ids: Iterable[str], *, through_ms: int, at_ms: int) -> None:
        """Writes the file with these users added; a user already in it keeps the later of both times. Only one process
        at a time may call it. Raises InfrastructureError."""
        key = self._key or secrets.token_bytes(32)
        users = dict(self._users)
        for user in user_ids:
            name = _hash(user, key)
            through, at = users.get(name, (NEVER, NEVER))
            users[name] = (max(through, through_ms), max(at, at_ms))
        self._replace(key, users)

    def before(self, time_ms: int, *, but: Iterable[str] = ()) -> int:
        """The number of users deleted before `time_ms` by the wall clock, without the users `but`."""
        return len(self._before(time_ms, but))

    def drop_before(self, time_ms: int, *, but: Iterable[str] = ()) -> int:
        """Writes the file without the users that `before` counts; returns their number. Only one process at a time may
        call it. Raises InfrastructureError."""
        gone = self._before(time_ms, but)
        if gone:
            self._replace(self._key, {name: times for name, times in self._users.items() if name not in gone})
        return len(gone)

    def through(self, user_ids: Sequence[str]) -> Int64s:
        """int64[n] in ms: each user's cut-off; NEVER for a user who was not deleted."""
        return self._times(user_ids, 0)

    def at(self, user_ids: Sequence[str]) -> Int64s:
        """int64[n] in ms: the wall clock of each user's deletion; NEVER for a user who was not deleted."""
        return self._times(user_ids, 1)

    def past(self, events: pa.Table) -> npt.NDArray[np.bool_]:
        """bool[n]: which rows (of `user_id` and `timestamp`) are deleted, at or before their user's cut-off."""
        if not self._users or not len(events):
            return np.zeros(len(events), bool)
        distinct = pc.unique(events["user_id"])
        codes = pc.index_in(events["user_id"], value_set=distinct).to_numpy()
        return events["timestamp"].to_numpy() <= self.through(distinct.to_pylist())[codes]

    def without_past(self, events: pa.Table) -> pa.Table:
        """The rows that are not deleted."""
        past = self.past(events)
        return events.filter(pa.array(~past)) if past.any() else events

    def _before(self, time_ms: int, but: Iterable[str]) -> set[str]:
        kept = {_hash(user, self._key) for user in but}
        return {name for name, (_, at) in self._users.items() if at < time_ms} - kept

    def _replace(self, key: bytes, users: Mapping[str, tuple[int, int]]) -> None:
        atomic_write(self._path, json.dumps({"key": key.hex(), "users": users}).encode())
        self._key, self._users = key, users

    def _times(self, user_ids: Sequence[str], which: int) -> Int64s:
        if not self._users:
            return np.full(len(user_ids), NEVER)
        found = (self._users.get(_hash(user, self._key), (NEVER, NEVER))[which] for user in user_ids)
        return np.fromiter(found, np.int64, count=len(user_ids))


def _read(path: Path) -> tuple[bytes, Mapping[str, tuple[int, int]]]:
    try:
        found = path.stat()
        return _parsed(path, (found.st_ino, found.st_mtime_ns, found.st_size))
    except FileNotFoundError:
        return b"", {}


@lru_cache(maxsize=2)  # an unchanged file is not read again: it may hold millions of users
def _parsed(path: Path, version: tuple[int, int, int]) -> tuple[bytes, Mapping[str, tuple[int, int]]]:
    del version  # part of the cache's key only
    try:
        content = json.loads(path.read_bytes())
        users = {str(name): (int(through), int(at)) for name, (through, at) in content["users"].items()}
        return bytes.fromhex(content["key"]), users
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"`{path}`, which tells who was forgotten, is damaged: {type(error).__name__}: {error}",
            hint="restore it from a copy, or remove it and run `spoor forget` again for everybody",
        ) from None


def _hash(user_id: str, key: bytes) -> str:
    return hashlib.blake2b(user_id.encode(), digest_size=_HASH_BYTES, key=key).hexdigest()
