"""A topic of one's own on the genuine broker, a Feast repo on SQLite, an untrained release, and worker processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from spoor.activity.events import Event, encode_event
from spoor.activity.hashing import hash_item, hash_name
from spoor.activity.packing import unpack
from spoor.broker.create_topics import ensure_topics
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings, load_settings
from spoor.store.online import OnlineStore, open_online
from spoor.store.repo import apply, create_repo
from spoor.store.rows import EmbeddingRow, embedding_row_from_record
from spoor.streaming.pipeline import encoder_process
from tests.conftest import DEADLINE_SECONDS, wait_until
from tests.releases import save_untrained_release
from tests.topics import topic_ends, topic_records
from tests.zygote import Forked, Zygote

RELEASE = "base-1"
MAX_EVENTS = 8
ITEMS = [f"item-{n}" for n in range(30)]
START_MS = 1_750_000_000_000
LOGIN = [  # how to reach the broker
    "security_protocol", "sasl_mechanism", "sasl_username", "sasl_password",
    "ssl_cafile", "ssl_certfile", "ssl_keyfile",
]  # fmt: skip
WORKER = "tests.streaming.worker_process"
ROOT = Path(__file__).parents[2]


def some_events(count: int, *, users: int = 20, seed: int = 0) -> list[Event]:
    """Random events with ties, late ones and repeats."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for n in range(count):
        if events and rng.random() < 0.1:
            events.append(events[rng.integers(len(events))])
            continue
        time_ms = START_MS + 1000 * n - int(rng.choice([0, 0, 1, 90_000]))
        user, item = f"user-{rng.integers(users)}", ITEMS[rng.integers(len(ITEMS))]
        events.append(Event(user, item, str(rng.choice(["view", "like"])), "home", time_ms))
    return events


def expected_histories(events: Iterable[Event]) -> dict[str, list[tuple[int, int, int, int]]]:
    """The model: each user's newest MAX_EVENTS distinct events by (timestamp, item, action, surface)."""
    sets: dict[str, set[tuple[int, int, int, int]]] = defaultdict(set)
    for e in events:
        sets[e.user_id].add((e.timestamp, hash_item(e.item_id), hash_name(e.action), hash_name(e.surface)))
    return {user: sorted(found)[-MAX_EVENTS:] for user, found in sets.items()}


@dataclass
class Worker:
    """A worker process that was started."""

    process: subprocess.Popen[bytes] | Forked
    log_file: Path
    summary_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.summary_file.read_text())

    def ended(self) -> int:
        """The exit code; fails where the worker does not end in time."""
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker goes on:\n{self.log[-3000:]}") from None

    def await_log(self, text: str) -> None:
        def logged() -> bool:
            assert self.process.poll() is None or text in self.log, f"ended without `{text}`:\n{self.log[-3000:]}"
            return text in self.log

        wait_until(logged, f"`{text}` in the worker's log")


@dataclass
class World:
    """Everything one test plays with. `config` is the settings file that its worker processes read."""

    folder: Path
    config: Path
    settings: Settings
    zygote: Zygote
    workers: list[Worker] = field(default_factory=list)

    def start_worker(
        self, *, count: int | None = None, fail_point: str = "", forked: bool = True, **environment: str
    ) -> Worker:
        """Not `forked`: Python starts anew, as it does for users, for the worker and for its encoders."""
        name = f"worker-{len(self.workers)}"
        log, summary = self.folder / f"{name}.log", self.folder / f"{name}.json"
        environment = {"SPOOR_CONFIG": str(self.config), **environment}
        arguments = [str(summary)]
        arguments += [] if count is None else ["--count", str(count)]
        arguments += ["--fail-point", fail_point] if fail_point else []
        if forked:
            process: subprocess.Popen[bytes] | Forked = self.zygote.start(
                arguments, program=WORKER, folder=self.folder, stdout=log, stderr=log, environment=environment
            )
        else:
            command = [sys.executable, "-m", WORKER, *arguments]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
            with open(log, "wb") as errors:
                process = subprocess.Popen(command, stdout=errors, stderr=errors, env=environment, cwd=self.folder)
        self.workers.append(Worker(process, log, summary))
        return self.workers[-1]

    def produce(self, events: Iterable[Event] = (), *, raw: Iterable[bytes | None] = ()) -> list[str]:
        """Produces events, then raw values. Returns the origins (topic/partition/offset) of the raw ones."""
        topic = self.settings.kafka.topic
        with KafkaProducer(**self.settings.kafka.client_options()) as producer:
            for event in events:
                producer.send(topic, key=event.user_id.encode(), value=encode_event(event))
            sent = [producer.send(topic, key=f"raw-{n}".encode(), value=value) for n, value in enumerate(raw)]
            producer.flush()
            places = [future.get(timeout=30) for future in sent]
        return [f"{topic}/{place.partition}/{place.offset}" for place in places]

    def committed(self) -> dict[TopicPartition, int]:
        group = self.settings.stream.group
        with closing(KafkaAdminClient(**self.settings.kafka.client_options())) as admin:
            return {tp: meta.offset for tp, meta in admin.list_group_offsets(group)[group].items()}

    def caught_up(self) -> bool:
        committed = self.committed()
        return all(
            committed.get(tp, 0) >= end
            for tp, end in topic_ends(self.settings.kafka, self.settings.kafka.topic).items()
        )

    def online(self) -> OnlineStore:
        return open_online(self.settings.features)

    def published(self) -> dict[str, EmbeddingRow]:
        """The last record per user of the release's topic."""
        records = topic_records(self.settings.kafka, self.settings.kafka.embedding_topic(RELEASE))
        return {record.key.decode(): embedding_row_from_record(record.value) for record in records}

    def assert_holds(self, events: Sequence[Event]) -> None:
        """Histories are those of the model, embeddings are of their revision, and the topic ends with them."""
        expected = expected_histories(events)
        online = self.online()
        assert set(online.user_ids()) == set(expected)
        users = sorted(expected)
        stored = online.read(users, [RELEASE])
        histories = unpack([row.history or b"" for row in stored])
        for i, user in enumerate(users):
            found = [tuple(int(part) for part in event) for event in histories[i]]
            assert found == expected[user], user
            assert stored[i].embedding_revisions == {RELEASE: stored[i].revision}
        published = self.published()
        assert set(published) == set(expected)
        for user, row in zip(users, online.read_embeddings(RELEASE, users), strict=True):
            assert row is not None
            assert published[user].revision == row.revision
            np.testing.assert_allclose(published[user].embedding, row.embedding, atol=1e-6)


def page(port: int, path: str) -> tuple[int, str]:
    """Status and text; (0, "") while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def metric(port: int, name: str) -> float:
    """The sum of a metric over its labels; NaN, which equals nothing, while there is none."""
    lines = re.findall(rf"^{name}(?:{{.*}})? (.+)$", page(port, "/metrics")[1], re.MULTILINE)
    return sum(map(float, lines)) if lines else float("nan")


@pytest.fixture(scope="session")
def untrained_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of releases with the release `base-1` in it."""
    folder = tmp_path_factory.mktemp("releases")
    save_untrained_release(
        folder / RELEASE, items=ITEMS, actions=["view", "like"], surfaces=["home"], trained_through_ms=START_MS
    )
    return folder


@pytest.fixture
def world(
    tmp_path: Path, kafka: KafkaSettings, untrained_release: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Four partitions, one release, sessions of 6 s; topics exist and definitions are applied."""
    forked = SimpleNamespace(**vars(subprocess) | {"Popen": zygote.start_encoders})
    monkeypatch.setattr(encoder_process, "subprocess", forked)  # tests/streaming/pipeline has the genuine start
    name = uuid.uuid4().hex[:12]
    login = "\n".join(f'{key} = "{getattr(kafka, key)}"' for key in LOGIN)
    config = tmp_path / "spoor.toml"
    config.write_text(
        f"""
state_folder = "state"
[kafka]
bootstrap_servers = "{kafka.address}"
{login}
topic = "activity-{name}"
dead_letter_topic = "activity-dead-letters-{name}"
embedding_topic_prefix = "user-embeddings-{name}."
session_timeout_seconds = 6.0
[history]
max_events = {MAX_EVENTS}
[features]
feature_repo = "feature_repo"
releases_folder = "{untrained_release}"
[stream]
group = "stream-{name}"
batch_events = 60
"""
    )
    settings = load_settings(file=config, environ={})
    create_repo(settings.features.feature_repo, online_store={"type": "sqlite"}, state_folder=settings.state_folder)
    apply(settings.features)
    ensure_topics(settings.kafka, releases=[RELEASE])
    world = World(tmp_path, config, settings, zygote)
    try:
        yield world
    finally:
        for worker in world.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.process.kill()
                worker.process.wait()
