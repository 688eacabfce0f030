"""Whether a Redis keeps the rows that it has acknowledged: they are the stream's state, not a cache.

One that may evict them is refused, since nobody would notice; one that loses them in a crash is warned of, since
`spoor verify` finds that and a replay or `--repair` mends it. INFO tells all that is asked here, needs no right to
read the configuration, and is answered by managed services too.
"""

from __future__ import annotations

import logging
from typing import Any

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from spoor.base.errors import UsageError

_log = logging.getLogger(__name__)


def require_durable(client: Redis | RedisCluster, *, expiring: bool) -> None:
    """Looks at the server, or at every master of a cluster. `expiring`: whether rows have an end of life, so that
    `volatile-…` policies concern them. Raises UsageError for a server that may evict rows; warns, once per server, of
    one that may lose them or does not tell its settings."""
    for server in _masters(client):
        where = _address(server)
        try:
            memory, persistence = server.info("memory"), server.info("persistence")
        except ResponseError:
            _log.warning(
                "the Redis at %s refuses INFO: check yourself that it has maxmemory-policy noeviction and appendonly "
                "yes, or give this user the right (+info)",
                where,
            )
            continue
        policy = str(memory["maxmemory_policy"])
        if memory["maxmemory"] and policy.startswith(("allkeys-", "volatile-") if expiring else "allkeys-"):
            raise UsageError(
                f"the Redis at {where} evicts users when its memory is full: maxmemory-policy is {policy}",
                hint="set maxmemory-policy to noeviction: at the limit writes then fail loudly and are tried again",
            )
        if not persistence["aof_enabled"]:
            _log.warning(
                "the Redis at %s has no append-only file: after a crash it forgets rows whose events are committed; "
                "set `appendonly yes`, see docs/operations.md",
                where,
            )


def _masters(client: Redis | RedisCluster) -> list[Any]:
    if isinstance(client, RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_primaries()]
    return [client]


def _address(server: Any) -> str:
    """Without user and password. Sentinel's clients know no address of their own."""
    options = server.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}" if "host" in options else "its address"
