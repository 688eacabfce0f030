"""Feast repos in temporary folders, on a genuine SQLite file or a genuine redis-server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spoor.feature_repo.settings import FeatureSettings
from spoor.store.feast_store import open_feature_store
from spoor.store.guarded.fallback import UnguardedStore
from spoor.store.online import OnlineStore, open_online
from spoor.store.repo import apply, create_repo
from tests.redis_servers import RedisServer
from tests.store.toys import DIMENSION


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Starts genuine servers on free ports; they stop with the session."""
    servers: list[RedisServer] = []

    def start(*options: str, config: Path | None = None) -> RedisServer:
        servers.append(RedisServer(tmp_path_factory.mktemp("redis"), options, config))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def redis_server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis()


@pytest.fixture(params=["sqlite", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    """The suite runs once per online store."""
    return request.param


@pytest.fixture
def online_store(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What feature_store.yaml says of the online store; a Redis is empty at the start of each test."""
    if kind == "sqlite":
        return {"type": "sqlite"}
    server: RedisServer = request.getfixturevalue("redis_server")
    server.client().flushall()
    return {"type": "redis", "connection_string": server.connection_string}


@pytest.fixture
def features(tmp_path: Path, online_store: dict[str, Any]) -> FeatureSettings:
    """An applied Feast repo with the releases base-1 and base-2."""
    return make_repo(tmp_path, online_store)


@pytest.fixture
def online(features: FeatureSettings) -> OnlineStore:
    return open_online(features)


def make_repo(folder: Path, online_store: dict[str, Any], *, applied: bool = True, **settings: Any) -> FeatureSettings:
    features = FeatureSettings(
        feature_repo=folder / "feature_repo",
        releases_folder=folder / "releases",
        offline_folder=folder / "state" / "offline",
        **settings,
    )
    add_release(features, "base-1")
    add_release(features, "base-2")
    create_repo(features.feature_repo, online_store=online_store, state_folder=folder / "state")
    if applied:
        apply(features)
    return features


def add_release(features: FeatureSettings, name: str, **content: Any) -> None:
    folder = features.releases_folder / name
    folder.mkdir(parents=True, exist_ok=True)
    described = {"name": name, "dimension": DIMENSION, "trained_through_ms": 1_600_000_000_000} | content
    (folder / "release.json").write_text(json.dumps(described))


def open_unguarded(features: FeatureSettings) -> OnlineStore:
    """Writes through Feast's own class, as for a store that Spoor has no guard for."""
    store, _ = open_feature_store(features)
    provider = store._get_provider()
    provider._online_store = None  # Feast makes its own again
    return OnlineStore(features, store, UnguardedStore(provider.online_store))
