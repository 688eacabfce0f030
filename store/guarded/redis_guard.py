"""Guarded writes to Feast's Redis online store: one Lua script per user, pipelined.

A user's rows of all views live in one hash, so the script compares and sets them in one step. Fields of views that are
not Spoor's are never named. Revisions are compared as bytes: Lua's numbers lose integers above 2^53.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, cast

from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.repo_config import RepoConfig
from google.protobuf.timestamp_pb2 import Timestamp
from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError

from spoor.store.guarded.guard import GuardedWrite, ViewRow, stored_name
from spoor.store.guarded.protobytes import KEY_VERSION
from spoor.store.guarded.redis_settings import require_durable

# KEYS[1] the user's hash; ARGV: revision field, expected revision ("" = none), key's life in seconds ("" = for ever),
# how many arguments the new values take, then these, if any: field, value, field, value, …; then the fields to remove
_COMPARE_AND_SET = """
local current = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if current ~= ARGV[2] then return 0 end
local last = 4 + tonumber(ARGV[4])
if last > 4 then redis.call('HSET', KEYS[1], unpack(ARGV, 5, last)) end
if #ARGV > last then redis.call('HDEL', KEYS[1], unpack(ARGV, last + 1)) end
if ARGV[3] ~= '' then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
_DIGEST = hashlib.sha1(_COMPARE_AND_SET.encode()).hexdigest()  # Redis names a script by its SHA-1
_SCAN_KEYS = 1000
_log = logging.getLogger(__name__)


class GuardedRedisOnlineStore(RedisOnlineStore):
    """For a single Redis, Sentinel and Redis Cluster."""

    def __init__(self) -> None:
        self._warned_of_expiry = False

    def read_values(
        self, config: RepoConfig, wanted: Sequence[tuple[FeatureView, str]], keys: Sequence[bytes]
    ) -> list[list[bytes | None]]:
        fields = [_field(config, view, feature) for view, feature in wanted]
        with self._redis(config).pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key + config.project.encode(), fields)
            return pipe.execute()

    def compare_and_set(
        self, config: RepoConfig, guard: tuple[FeatureView, str], writes: Sequence[GuardedWrite]
    ) -> list[bool]:
        guard_field = _field(config, *guard)
        seconds = self._key_seconds(config)
        suffix = config.project.encode()
        calls = []
        for write in writes:
            fields = [part for row in write.rows for pair in _fields(config, row) for part in pair]
            gone = [name for view in write.removed for name in _all_fields(config, view)]
            calls.append((write.key + suffix, guard_field, write.expected, seconds, len(fields), *fields, *gone))
        return [reply == 1 for reply in self._run_script(config, calls)]

    def put(self, config: RepoConfig, rows: Sequence[tuple[bytes, ViewRow]]) -> None:
        with self._redis(config).pipeline(transaction=False) as pipe:
            for key, row in rows:
                pipe.hset(key + config.project.encode(), mapping=cast(Any, dict(_fields(config, row))))
            pipe.execute()

    def entity_keys(self, config: RepoConfig, guard: tuple[FeatureView, str], prefix: bytes) -> Iterator[bytes]:
        field = _field(config, *guard)
        for page in self._pages(config, prefix):
            with self._redis(config).pipeline(transaction=False) as pipe:
                for key in page:
                    pipe.hexists(key, field)
                present = pipe.execute()
            yield from (
                key.removesuffix(config.project.encode()) for key, here in zip(page, present, strict=True) if here
            )

    def require_durable(self, config: RepoConfig) -> None:
        require_durable(self._redis(config), expiring=bool(self._key_seconds(config)))

    def create_tables(self, config: RepoConfig, views: Sequence[FeatureView]) -> None:
        """Redis needs none."""

    def delete_rows(self, config: RepoConfig, view: FeatureView) -> None:
        fields = _all_fields(config, view)
        for page in self._pages(config, serialize_entity_key_prefix(view.join_keys, KEY_VERSION)):
            with self._redis(config).pipeline(transaction=False) as pipe:
                for key in page:
                    pipe.hdel(key, *cast(Any, fields))  # Redis drops a hash with its last field
                pipe.execute()

    def _run_script(self, config: RepoConfig, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        client = self._redis(config)
        if isinstance(client, RedisCluster):  # its pipelines refuse EVALSHA
            with client.pipeline(transaction=False) as pipe:
                for call in calls:
                    pipe.execute_command("EVAL", _COMPARE_AND_SET, 1, *call)
                return pipe.execute()
        replies: list[Any] = [None] * len(calls)
        for _ in range(3):  # a server that restarted, or that Sentinel promoted, does not know the script yet
            missing = [
                index for index, reply in enumerate(replies) if reply is None or isinstance(reply, NoScriptError)
            ]
            with client.pipeline(transaction=False) as pipe:
                for index in missing:
                    pipe.evalsha(_DIGEST, 1, *calls[index])
                for index, reply in zip(missing, pipe.execute(raise_on_error=False), strict=True):
                    replies[index] = reply
            errors = [reply for reply in replies if isinstance(reply, Exception)]
            if not errors:
                return replies
            if unexpected := [error for error in errors if not isinstance(error, NoScriptError)]:
                raise unexpected[0]
            client.script_load(_COMPARE_AND_SET)
        raise NoScriptError("the server forgets its scripts at once")

    def _pages(self, config: RepoConfig, prefix: bytes) -> Iterator[list[bytes]]:
        """Keys of this project and entity. SCAN may show a key twice; every use of it bears that."""
        client = self._redis(config)
        pattern = _literal(prefix) + b"*" + _literal(config.project.encode())
        keys = iter(client.scan_iter(pattern, count=_SCAN_KEYS))
        while page := list(islice(keys, _SCAN_KEYS)):
            yield page

    def _redis(self, config: RepoConfig) -> Any:
        assert isinstance(config.online_store, RedisOnlineStoreConfig)
        return self._get_client(config.online_store)

    def _key_seconds(self, config: RepoConfig) -> bytes:
        """As Feast does, a write renews the key's life, but that would be the history's life too."""
        assert isinstance(config.online_store, RedisOnlineStoreConfig)
        seconds = config.online_store.key_ttl_seconds
        if seconds and not self._warned_of_expiry:
            self._warned_of_expiry = True
            _log.warning("key_ttl_seconds is %d: histories of users without events expire with it", seconds)
        return str(seconds).encode() if seconds else b""


def _fields(config: RepoConfig, row: ViewRow) -> list[tuple[bytes, bytes]]:
    seconds, milliseconds = divmod(row.event_time_ms, 1000)
    time = Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000).SerializeToString()
    view = stored_name(config, row.view)
    fields = [(_hashed(view, feature), value) for feature, value in row.values.items()]
    return [*fields, (_time_field(config, row.view), time)]


def _all_fields(config: RepoConfig, view: FeatureView) -> list[bytes]:
    """Everything of the view that an entity's hash may hold."""
    return [*(_field(config, view, feature.name) for feature in view.features), _time_field(config, view)]


def _field(config: RepoConfig, view: FeatureView, feature: str) -> bytes:
    return _hashed(stored_name(config, view), feature)


@cache
def _hashed(view: str, feature: str) -> bytes:
    return _mmh3(f"{view}:{feature}")


def _time_field(config: RepoConfig, view: FeatureView) -> bytes:
    return f"_ts:{stored_name(config, view)}".encode()


def _literal(text: bytes) -> bytes:
    """For a SCAN pattern: lengths inside a serialised key may be the bytes of `*`, `?`, `[` or a backslash."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\" else bytes([byte]) for byte in text)
