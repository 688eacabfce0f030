"""A Redis that may drop rows is refused or warned of when a writer opens it: genuine servers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spoor.base.errors import UsageError
from spoor.store.online import open_online
from tests.redis_servers import RedisServer
from tests.store.conftest import make_repo


@pytest.fixture
def told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """told(server, …): what opening it for writing warns of. Further words are feature_store.yaml's online_store."""

    def ask(server: RedisServer, login: str = "", **options: Any) -> list[str]:
        store = {"type": "redis", "connection_string": server.connection_string + login} | options
        with caplog.at_level(logging.WARNING, logger="spoor.store.guarded.redis_settings"):
            open_online(make_repo(tmp_path / str(server.port), store)).require_durable()
        return [record.getMessage() for record in caplog.records if record.name == "spoor.store.guarded.redis_settings"]

    return ask


def test_a_redis_that_evicts_is_refused_and_one_that_only_may_expire_keys_is_not(told, start_redis):
    server = start_redis("--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with pytest.raises(UsageError, match=f"127.0.0.1:{server.port} evicts users.*allkeys-lru") as raised:
        told(server)
    assert "noeviction" in raised.value.hint
    server.client().config_set("maxmemory-policy", "volatile-lru")
    assert told(server) == []  # no row has an end of life
    with pytest.raises(UsageError, match="volatile-lru"):
        told(server, key_ttl_seconds=60)
    server.client().config_set("maxmemory-policy", "noeviction")
    assert told(server) == []


def test_a_redis_without_append_only_file_is_warned_of(told, start_redis):
    (warning,) = told(start_redis())
    assert "no append-only file" in warning


def test_a_user_who_may_not_ask_is_told_what_to_look_at(told, tmp_path: Path, start_redis):
    acl = tmp_path / "users.acl"
    rights = "~* +@read +@write +@connection +@scripting -@dangerous"
    acl.write_text(f"user default on nopass ~* +@all\nuser asks on >word {rights} +info\nuser none on >word {rights}\n")
    server = start_redis("--aclfile", str(acl))
    (warning,) = told(server, ",username=asks,password=word")
    assert "no append-only file" in warning
    assert "refuses INFO" in told(server, ",username=none,password=word")[-1]


def test_every_master_of_a_cluster_is_asked(told, start_redis):
    server = start_redis("--cluster-enabled", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lfu")
    server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    with pytest.raises(UsageError, match="allkeys-lfu"):
        told(server, redis_type="redis_cluster")
