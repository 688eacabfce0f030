"""Genuine redis-servers on free ports: started, killed, and started again on what is on their disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from tests.conftest import free_port, wait_until

REDIS_MISSING = "redis-server is not installed: `apt-get install redis-server` (or brew, dnf, …), then run again"


def require_redis() -> str:
    """The program; skips the test where there is none, and fails it where `.ci/run` has required it."""
    program = shutil.which("redis-server")
    if program is None and os.environ.get("REQUIRE_REDIS_SERVER"):
        pytest.fail(REDIS_MISSING)
    if program is None:
        pytest.skip(REDIS_MISSING)
    return program


@dataclass
class RedisServer:
    """One server; its data and its log lie in `folder`. Without options it keeps nothing on disk."""

    folder: Path
    options: tuple[str, ...] = ()
    config: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    cluster_port: int = field(default_factory=free_port)  # by default port + 10,000, which a connection may have
    process: subprocess.Popen[bytes] | None = None

    @property
    def connection_string(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def start(self) -> RedisServer:
        """Returns once it answers."""
        command = [require_redis(), *([] if self.config is None else [str(self.config)])]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        if "--cluster-enabled" in self.options:  # Redis 7 knows this
            command += ["--cluster-port", str(self.cluster_port)]
        with (self.folder / "log").open("ab") as log:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log, env=environment)
        wait_until(self.answers, "redis-server answers")
        return self

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "redis-server ended at once"
        try:
            return bool(self.client().ping())
        except redis.exceptions.AuthenticationError:
            return True
        except redis.exceptions.RedisError:
            return False

    def kill(self) -> None:
        """As `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=10)
