"""The containers' settings and commands, with this machine's folders and ports in the place of theirs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from spoor.broker.settings import KafkaSettings
from spoor.config import Settings, load_settings
from spoor.services.flink import OPENED, flink_jars
from spoor.services.java import java_executable
from tests.brokers import running_broker
from tests.conftest import DEADLINE_SECONDS, free_port
from tests.redis_servers import RedisServer
from tests.releases import save_untrained_release
from tests.store.conftest import start_redis

__all__ = ["start_redis"]  # a fixture

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yml"
ITEMS = [f"item-{n}" for n in range(20)]
RELEASE = "base-1"
PORTS = ("9108", "6566", "6122", "6123", "8081", "8097", "8098", "8099", "50000")


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def secret_names(service: dict[str, Any]) -> dict[str, str]:
    """Name under /run/secrets → name of the secret."""
    named = [{"source": s, "target": s} if isinstance(s, str) else s for s in service.get("secrets", ())]
    return {secret["target"]: secret["source"] for secret in named}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Stack:
    """`here` maps what stands in the containers' files to what it is on this machine."""

    folder: Path
    here: dict[str, str]
    secrets: Path

    def translate(self, text: str, service: str) -> str:
        """In one pass and by whole words: the digits of a port may stand in a password, or in another port."""
        names = {**self.here, **self._folders(service)}
        longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return re.sub(rf"(?<!\w)(?:{longest_first})(?!\w)", lambda found: names[found[0]], text)

    def prepare(self, service: str) -> dict[str, str]:
        """What the service's container would find: settings, secrets, feature repo. Returns its environment."""
        described = compose()["services"][service]
        folders = {there: Path(here) for there, here in self._folders(service).items()}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        for config in described.get("configs", ()):
            source = ROOT / compose()["configs"][config["source"]]["file"]
            target = Path(self.translate(config["target"], service))
            target.write_text(self.translate(source.read_text(), service))
        secrets = folders["/run/secrets"]
        for target, source in secret_names(described).items():
            (secrets / target).write_text(self.translate((self.secrets / source).read_text(), service))
        repo = folders["/srv/feature_repo"]
        shutil.copy(DEPLOY / "feature_repo" / "definitions.py", repo)
        link = repo / "feature_store.yaml"  # as the Dockerfile has it
        link.unlink(missing_ok=True)
        link.symlink_to(secrets / "feature_store.yaml")
        own = {name: self.translate(str(value), service) for name, value in described.get("environment", {}).items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SPOOR_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as the image has it: our python first
        return {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), **own}

    def command(self, service: str, words: Sequence[str]) -> list[str]:
        programs = {
            "spoor": [sys.executable, "-m", "spoor"],
            "feast": [str(Path(sys.executable).parent / "feast")],
            "python": [sys.executable],
            "java": [java_executable(), *OPENED],
            "bash": ["bash"],
        }
        return [*programs[words[0]], *(self.translate(word, service) for word in words[1:])]

    def start(self, service: str, *words: str, **settings: str) -> subprocess.Popen[bytes]:
        """The service's own command, or `words` in its place as with `docker compose run`; its output in NAME.log.
        `settings`: more of its environment."""
        environment, described = self.prepare(service) | settings, compose()["services"][service]
        with open(self.log_file(service), "wb") as log:
            command = self.command(service, [*described.get("entrypoint", ()), *(words or described["command"])])
            folder = self.here["/var/lib/spoor"]  # the image's WORKDIR
            return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)

    def log_file(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    def run(self, service: str, *words: str) -> int:
        process = self.start(service, *words)
        try:
            return process.wait(DEADLINE_SECONDS)
        finally:
            process.kill()

    def log(self, service: str) -> str:
        return self.log_file(service).read_text()

    def healthy(self, service: str) -> bool:
        """The service's own health check."""
        (kind, *words) = compose()["services"][service]["healthcheck"]["test"]
        assert kind == "CMD", "a health check that this machine can run"
        done = subprocess.run(self.command(service, words), capture_output=True, timeout=DEADLINE_SECONDS)
        return done.returncode == 0

    def settings(self, service: str) -> Settings:
        environment = self.prepare(service)
        return load_settings(file=Path(environment["SPOOR_CONFIG"]), environ={})

    def passwords(self) -> list[str]:
        texts = [(self.secrets / name).read_text() for name in ("kafka-password", "grafana-password")]
        stores = [yaml.safe_load((self.secrets / f"feature_store{kind}.yaml").read_text()) for kind in ("", ".reader")]
        texts += [store["online_store"]["connection_string"].rpartition("=")[2] for store in stores]
        return [text.strip() for text in texts]

    def _folders(self, service: str) -> dict[str, str]:
        own = self.folder / service
        return {
            "/run/secrets": str(own / "secrets"),
            "/srv/feature_repo": str(own / "feature_repo"),
            "/etc/spoor": str(own),
            "/etc/flink": str(own),
        }


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets") / "made"
    subprocess.run([DEPLOY / "new-secrets", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def store(start_redis: Callable[..., RedisServer], secrets: Path) -> RedisServer:
    """Redis with deploy/redis/redis.conf."""
    return start_redis("--aclfile", str(secrets / "redis-users.acl"), config=DEPLOY / "redis" / "redis.conf")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, secrets: Path) -> Iterator[str]:
    """Kafka with deploy/kafka; its address."""
    port, ports = free_port(), {"9093": str(free_port()), "9094": str(free_port())}
    text = (DEPLOY / "kafka" / "server.properties").read_text()
    for there, here in {**ports, "0.0.0.0:9092": f"127.0.0.1:{port}", "kafka:9092": f"127.0.0.1:{port}"}.items():
        assert there in text
        text = text.replace(there, here)
    pairs = [line.partition("=") for line in text.splitlines() if line and not line.startswith("#")]
    address = f"127.0.0.1:{port}"
    client = KafkaSettings(
        bootstrap_servers=address,
        security_protocol="SASL_PLAINTEXT",
        sasl_username="spoor",
        sasl_password=(secrets / "kafka-password").read_text().strip(),
    )
    with running_broker(
        tmp_path_factory.mktemp("kafka"),
        {name: value for name, _, value in pairs},
        client,
        java_options=[f"-Djava.security.auth.login.config={secrets / 'kafka-jaas.conf'}"],
        log4j2=(DEPLOY / "log4j2.properties").read_text(),
    ):
        yield address


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, secrets: Path, store: RedisServer, broker: str) -> Stack:
    folder = tmp_path_factory.mktemp("stack")
    for name in ("state", "releases"):
        (folder / name).mkdir()
    save_untrained_release(folder / "releases" / RELEASE, items=ITEMS, actions=["view"], surfaces=["home"])
    here = {
        "/var/lib/spoor": str(folder / "state"),
        "/srv/releases": str(folder / "releases"),
        "kafka:9092": broker,
        "redis:6379": store.connection_string,
        "0.0.0.0": "127.0.0.1",
        **{port: str(free_port()) for port in PORTS},
        **dict.fromkeys(("flink-job-manager", "flink-task-manager", "beam-job-server"), "127.0.0.1"),
        **dict.fromkeys(("/opt/flink/lib/*", "/opt/apache/beam/jars/*"), ":".join(map(str, flink_jars()))),
    }
    return Stack(folder, here, secrets)
