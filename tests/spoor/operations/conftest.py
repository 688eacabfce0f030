"""The store's fixtures: a Feast repo in a temporary folder, on SQLite or on Redis."""

from tests.store.conftest import features, kind, online, online_store, redis_server, start_redis

__all__ = ["features", "kind", "online", "online_store", "redis_server", "start_redis"]
