"""A small world per test: a topic of its own on the genuine broker, a Feast repo, a lake, and real worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from spoor.config import Settings, load_settings
from spoor.kafka_admin import ensure_topics, group_lag, group_members
from store.repo import apply, create_repo
from tests.conftest import DEADLINE_SECONDS
from tests.releases import save_untrained_release

RELEASES = ("base-1", "base-2")
ITEMS = [f"item-{n}" for n in range(50)]
ACTIONS, SURFACES = ("view", "like", "save"), ("home", "search")
SPOOR = str(Path(sys.executable).parent / "spoor")


@dataclass
class World:
    """`config` is the settings file that every process of this test reads."""

    folder: Path
    config: Path
    settings: Settings
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self, **settings: str) -> dict[str, str]:
        return {**os.environ, "SPOOR_CONFIG": str(self.config), **settings}

    def spoor(self, *arguments: str) -> dict[str, Any]:
        """Runs a command to its end and returns its JSON object; it must exit with 0."""
        done = self.start("--config", str(self.config), *arguments, "--json", output=subprocess.PIPE)
        out, _ = done.communicate(timeout=DEADLINE_SECONDS)
        assert done.returncode == 0, (arguments, done.returncode, self.log(done))
        return json.loads(out)

    def worker(self, fail_point: str = "") -> subprocess.Popen[bytes]:
        return self.start("stream", SPOOR_STREAM__FAIL_POINT=fail_point)

    def start(self, *arguments: str, output: int = subprocess.DEVNULL, **settings: str) -> subprocess.Popen[bytes]:
        log = self.folder / f"process-{len(self.processes)}.log"
        with open(log, "wb") as errors:
            environment = self.environment(**settings)
            process = subprocess.Popen([SPOOR, *arguments], stdout=output, stderr=errors, env=environment)
        self.processes.append(process)
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"process-{self.processes.index(process)}.log").read_text()

    def await_exit(self, process: subprocess.Popen[bytes], code: int) -> None:
        try:
            found = process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            found = None
        assert found == code, f"exit {found}, expected {code}:\n{self.log(process)[-3000:]}"

    def caught_up(self) -> bool:
        """Every record has been handled and committed."""
        return not any(group_lag(self.settings.kafka, self.settings.stream.group).values())

    def members(self) -> int:
        return group_members(self.settings.kafka, self.settings.stream.group)

    def producer(self) -> KafkaProducer:
        return KafkaProducer(**self.settings.kafka.client_options())


@pytest.fixture
def world(tmp_path: Path, kafka_settings: Settings) -> Iterator[World]:
    """Two live releases, four partitions, sessions of 6 s; Feast is applied, the topics are there."""
    kafka = kafka_settings.kafka
    config = tmp_path / "spoor.toml"
    config.write_text(
        f"""
state_folder = "state"
[kafka]
bootstrap_servers = "{kafka.address}"
topic = "{kafka.topic}"
dead_letter_topic = "{kafka.dead_letter_topic}"
embedding_topic_prefix = "{kafka.embedding_topic_prefix}"
partitions = 4
session_timeout_seconds = 6.0
[history]
max_events = 16
[features]
feature_repo = "feature_repo"
[lake]
buckets = 3
range_records = 700
[stream]
group = "workers-of-{kafka.topic}"
batch_events = 100
"""
    )
    with ExitStack() as stack:
        world = World(tmp_path, config, load_settings(file=config, environ={}))
        stack.callback(_end_all, world)
        features = world.settings.features
        for seed, name in enumerate(RELEASES):
            # A few items, an action and a surface in the traffic are unknown to the releases.
            folder = features.releases_folder / name
            save_untrained_release(folder, items=ITEMS[:-5], actions=ACTIONS[:-1], surfaces=SURFACES[:-1], seed=seed)
        create_repo(features.feature_repo, online_store={"type": "sqlite"}, state_folder=tmp_path / "state" / "feast")
        apply(features)
        ensure_topics(world.settings.kafka, releases=RELEASES)
        yield world


def _end_all(world: World) -> None:
    for process in world.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
