"""Whether a Redis keeps the rows that it has acknowledged: they are the stream's state, not a cache.

One that may evict them is refused, since nobody would notice; one that loses them in a crash is warned of, since
`spoor verify` finds that and a replay or `--repair` mends it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from activity.errors import UsageError

_log = logging.getLogger(__name__)


def require_durable(client: Redis | RedisCluster, *, expiring: bool) -> None:
    """Looks at the server, or at every master of a cluster. `expiring`: whether rows have an end of life, so that
    `volatile-…` policies concern them. Raises UsageError for a server that may evict rows; warns, once per server, of
    one that may lose them or does not tell its settings."""
    for server in _masters(client):
        where = _address(server)
        found = _settings(server)
        if found is None:
            _log.warning(
                "the Redis at %s does not tell its settings (CONFIG and INFO are refused): check yourself that it has "
                "maxmemory-policy noeviction and appendonly yes",
                where,
            )
            continue
        policy = found["maxmemory-policy"]
        if found["maxmemory"] != "0" and policy.startswith(("allkeys-", "volatile-") if expiring else "allkeys-"):
            raise UsageError(
                f"the Redis at {where} evicts users when its memory is full: maxmemory-policy is {policy}",
                hint="set maxmemory-policy to noeviction: at the limit writes then fail loudly and are tried again",
            )
        if found["appendonly"] != "yes":
            _log.warning(
                "the Redis at %s has no append-only file (appendonly %s): after a crash it forgets rows whose events "
                "are committed; set `appendonly yes`, see docs/operations.md",
                where,
                found["appendonly"],
            )


def _masters(client: Redis | RedisCluster) -> list[Redis]:
    if isinstance(client, RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_primaries()]
    return [client]


def _address(server: Redis) -> str:
    """Without user and password."""
    options = server.connection_pool.connection_kwargs
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def _settings(server: Any) -> Mapping[str, str] | None:
    """`maxmemory`, `maxmemory-policy`, `appendonly`; None where this user may not know. Managed services refuse CONFIG,
    and INFO tells the same."""
    try:
        return {**server.config_get("maxmemory*"), **server.config_get("appendonly")}
    except ResponseError:
        pass
    try:
        memory, persistence = server.info("memory"), server.info("persistence")
    except ResponseError:
        return None
    return {
        "maxmemory": str(memory["maxmemory"]),
        "maxmemory-policy": str(memory["maxmemory_policy"]),
        "appendonly": "yes" if persistence["aof_enabled"] else "no",
    }
