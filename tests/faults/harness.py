"""A world to break: a topic, a Feast repo, a lake, real worker processes; what was produced into it; and the judge.

A scenario is `Traffic` (what the producers do), faults (what the test does to workers and servers meanwhile), and
`judge` at the end: `spoor verify` and an SQL query over what was produced agree with the store, the embedding topics
end with the store's rows, and the dead letters are the bad records, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaProducer

from activity.events import Event, encode_event
from activity.packing import unpack
from activity.settings import KafkaSettings
from spoor.config import Settings, load_settings
from spoor.kafka_admin import ensure_topics, group_lag
from store.online import open_online
from store.repo import apply, create_repo
from store.rows import embedding_row_from_record
from streaming.control import group_members
from streaming.dead_letters import decode_dead_letter
from streaming.handover import rewind
from tests.conftest import DEADLINE_SECONDS, wait_until
from tests.releases import save_untrained_release
from tests.sql import newest_by_sql
from tests.topics import topic_records

ROOT = Path(__file__).parents[2]
SPOOR = (sys.executable, "-m", "spoor")
LONG_SECONDS = 600.0  # for what takes minutes on busy cores
START_MS = 1_750_000_000_000
ITEMS = [f"item-{n}" for n in range(50)]
ACTIONS, SURFACES = ("view", "like", "save"), ("home", "search")
BAD_VALUES = (
    b"not json",
    b"",
    b"[]",
    b'{"user_id": 1}',
    b'{"user_id": "u", "item_id": "i"}',
    b"\xff\xfe",
    None,
    b"{" * 40_000,
)


@dataclass
class World:
    """`config` is the settings file that every process of this test reads."""

    folder: Path
    config: Path
    settings: Settings
    releases: tuple[str, ...]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spoor(self, *arguments: str, codes: Sequence[int] = (0,)) -> dict[str, Any]:
        """Runs a command to its end and returns its JSON object; it must exit with one of `codes`."""
        done = self.start(*arguments, "--json", output=subprocess.PIPE)
        out, _ = done.communicate(timeout=LONG_SECONDS)
        assert done.returncode in codes, (arguments, done.returncode, out[-2000:], self.log(done)[-3000:])
        return json.loads(out)

    def worker(self, fail_point: str = "") -> subprocess.Popen[bytes]:
        program = (sys.executable, "-m", "tests.fail_points", fail_point) if fail_point else SPOOR
        self.workers.append(self.start("stream", program=program))
        return self.workers[-1]

    def start(
        self,
        *arguments: str,
        output: int = subprocess.DEVNULL,
        program: Sequence[str] = SPOOR,
        **settings: str,
    ) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
        with open(self.folder / f"process-{len(self.processes)}.log", "wb") as errors:
            command = [*program, "--config", str(self.config), *arguments]
            process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
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

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        """As an orchestrator stops workers; each must end well."""
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            self.await_exit(process, 0)

    def caught_up(self) -> bool:
        """Every record has been handled and committed."""
        return not any(group_lag(self.settings.kafka, self.settings.stream.group).values())

    def members(self) -> int:
        return group_members(self.settings.kafka, self.settings.stream.group)

    def rebalances(self) -> int:
        """How often a worker was given partitions."""
        return sum(self.log(worker).count(" streaming.processor partitions ") for worker in self.workers)

    def total(self, figure: str) -> int:
        """The sum of a figure over all the workers' lines per batch."""
        logs = map(self.log, self.workers)
        return sum(int(found) for log in logs for found in re.findall(rf" batch .* {figure}=(\d+)", log))

    def producer(self) -> KafkaProducer:
        """One that comes back within a second of the broker, and gives nothing up before a test does."""
        patience = {"max_block_ms": 300_000, "delivery_timeout_ms": 300_000, "reconnect_backoff_max_ms": 1000}
        return KafkaProducer(**self.settings.kafka.client_options(), **patience)

    def rewind(self) -> None:
        """As `spoor stream --rewind 1h`, once the group has no members."""
        wait_until(lambda: self.members() == 0, "the workers have left their group")
        rewind(self.settings, to_ms=time.time_ns() // 1_000_000 - 3_600_000)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


def new_world(
    folder: Path,
    kafka: KafkaSettings,
    *,
    online_store: Mapping[str, Any],
    releases: tuple[str, ...] = ("base-1",),
    partitions: int = 4,
    batch_events: int = 100,
    stall_seconds: float = 60.0,
    buckets: int = 3,
) -> World:
    """Sessions of 6 s; Feast is applied, the topics are there. A few items, an action and a surface in the traffic
    are unknown to the releases."""
    config = folder / "spoor.toml"
    config.write_text(
        f"""
state_folder = "state"
[kafka]
bootstrap_servers = "{kafka.address}"
topic = "{kafka.topic}"
dead_letter_topic = "{kafka.dead_letter_topic}"
embedding_topic_prefix = "{kafka.embedding_topic_prefix}"
partitions = {partitions}
session_timeout_seconds = 6.0
[history]
max_events = 16
[features]
feature_repo = "feature_repo"
[lake]
buckets = {buckets}
range_records = {7 * batch_events}
[stream]
group = "workers-of-{kafka.topic}"
batch_events = {batch_events}
stall_seconds = {stall_seconds}
"""
    )
    settings = load_settings(file=config, environ={})
    for seed, name in enumerate(releases):
        release = settings.features.releases_folder / name
        save_untrained_release(release, items=ITEMS[:-5], actions=ACTIONS[:-1], surfaces=SURFACES[:-1], seed=seed)
    repo = settings.features.feature_repo
    create_repo(repo, online_store=online_store, state_folder=folder / "state" / "feast")
    apply(settings.features)
    ensure_topics(settings.kafka, releases=releases)
    return World(folder, config, settings, releases)


@dataclass
class Fleet:
    """Workers that are started again when they end, as an orchestrator does. `fail_points` are handed out in turn."""

    world: World
    size: int
    fail_points: Iterator[str] = field(default_factory=lambda: iter(()))
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    exits: Counter[int] = field(default_factory=Counter)  # by exit code, -9 = killed

    def tend(self) -> bool:
        """Starts again who has ended. True, so that it can stand in a condition."""
        for worker in [worker for worker in self.running if worker.poll() is not None]:
            self.running.remove(worker)
            self.exits[worker.returncode] += 1
            assert worker.returncode in (-signal.SIGKILL, 3), self.world.log(worker)[-3000:]
        while len(self.running) < self.size:
            self.running.append(self.world.worker(next(self.fail_points, "")))
        return True

    def tended_until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: self.tend() and condition(), what, seconds=LONG_SECONDS)

    def finish(self) -> None:
        """Works off what waits, then stops everybody."""
        self.fail_points = iter(())
        self.tended_until(self.world.caught_up, "everything is committed")
        self.stop()

    def replay(self) -> int:
        """After a store lost its latest writes: everything once more, by workers without a memory. Returns how many
        differences `spoor verify` found before."""
        self.finish()
        self.world.spoor("archive")
        before = self.world.spoor("verify", codes=(0, 1))["differences"]
        self.world.rewind()
        self.finish()
        return before

    def stop(self) -> None:
        for worker in self.running:
            worker.send_signal(signal.SIGTERM)
        for worker in self.running:  # one with a fail point may still reach it
            self.exits[worker.wait(DEADLINE_SECONDS)] += 1
        self.running.clear()


class Traffic:
    """Produces and remembers random events (some repeated, late, or under a foreign key) and bad records."""

    def __init__(self, world: World, *, seed: int = 7, users: int = 80) -> None:
        self.world = world
        self.users = users
        self.random = random.Random(seed)
        self.events: list[Event] = []
        self.records = 0
        self.bad: dict[str, tuple[bytes, bytes | None]] = {}  # topic/partition/offset → (key, value)

    def produce(self, events: int, *, bad: int = 0, pieces: int = 1, seconds: float = 0.0) -> None:
        """Returns when all are acknowledged; with several pieces one waits for the other. They are spread over so many
        seconds, in which something is to break."""
        started = time.monotonic()
        with self.world.producer() as producer:
            for piece in range(pieces):
                time.sleep(max(0.0, started + seconds * piece / pieces - time.monotonic()))
                made = [self.event() for _ in range(events // pieces)]
                self._send(producer, made, [self.random.choice(BAD_VALUES) for _ in range(bad // pieces)])

    def send(self, events: Sequence[Event], *, bad: Sequence[bytes | None] = ()) -> None:
        """In the given order, with bad records in between. Returns when all are acknowledged."""
        with self.world.producer() as producer:
            self._send(producer, events, bad)

    def _send(self, producer: KafkaProducer, events: Sequence[Event], bad: Sequence[bytes | None]) -> None:
        records: list[tuple[bytes, bytes | None, bool]] = []
        for event in events:
            key = "someone else" if self.random.random() < 0.02 else event.user_id
            records.append((key.encode(), encode_event(event), False))
        for value in bad:
            records.insert(self.random.randint(0, len(records)), (b"bad", value, True))
        topic = self.world.settings.kafka.topic
        sent = [producer.send(topic, key=key, value=value) for key, value, _ in records]
        for future, (key, value, is_bad) in zip(sent, records, strict=True):
            where = future.get(timeout=LONG_SECONDS)
            if is_bad:
                self.bad[f"{topic}/{where.partition}/{where.offset}"] = key, value
        self.events += events
        self.records += len(records)

    @contextmanager
    def flowing(
        self, events: int, *, bad: int = 0, pieces: int = 10, seconds: float = 0.0
    ) -> Iterator[Callable[[], bool]]:
        """As `produce`, in a thread. Yields whether it has ended; at the end waits for it."""
        failures: list[BaseException] = []

        def flow() -> None:
            try:
                self.produce(events, bad=bad, pieces=pieces, seconds=seconds)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=flow)
        thread.start()
        try:
            yield lambda: not thread.is_alive()
        finally:
            thread.join()
        assert not failures, failures

    def event(self) -> Event:
        """A new one, or one of those sent before."""
        pick = self.random
        if self.events and pick.random() < 0.1:
            return pick.choice(self.events)
        now = START_MS + len(self.events) * 500
        return Event(
            user_id=f"user-{int(self.users * pick.random() ** 2)}",  # a few users have most of the events
            item_id=pick.choice(ITEMS),
            action=pick.choice(ACTIONS),
            surface=pick.choice(SURFACES),
            timestamp=now - pick.choice((0, 0, 0, 1, 60_000, 3_600_000)),  # ties, and late by up to an hour
        )


def judge(world: World, traffic: Traffic) -> dict[str, int]:
    """The common end of every scenario. Returns how many users and differences `spoor verify` found."""
    world.spoor("archive")
    verified = world.spoor("verify")
    assert (verified["users"], verified["differences"]) == (len({e.user_id for e in traffic.events}), 0)
    assert_store_holds(world, traffic.events)
    assert_topics_equal_store(world)
    assert_dead_letters_are(world, traffic)
    return {"users": verified["users"], "differences": verified["differences"]}


def assert_store_holds(world: World, events: Sequence[Event]) -> None:
    """Forgotten users have a row without events: they are left out."""
    expected = newest_by_sql(events, world.settings.history.max_events)
    online = open_online(world.settings.features)
    users = sorted(online.user_ids())
    stored = unpack([row.history or b"" for row in online.read(users, [])])
    found = {user: [tuple(map(int, event)) for event in stored[row]] for row, user in enumerate(users)}
    assert {user: history for user, history in found.items() if history} == expected


def assert_topics_equal_store(world: World) -> None:
    """The last record per user in each embedding topic is what the store holds."""
    online = open_online(world.settings.features)
    for release in world.releases:
        topic = world.settings.kafka.embedding_topic(release)
        last = {record.key.decode(): record.value for record in topic_records(world.settings.kafka, topic)}
        assert last, topic
        for (user, value), stored in zip(last.items(), online.read_embeddings(release, list(last)), strict=True):
            assert (value is None) == (stored is None), user
            if value is None or stored is None:
                continue
            row = embedding_row_from_record(value)
            assert row.revision == stored.revision, user
            np.testing.assert_array_equal(row.embedding, stored.embedding)


def assert_dead_letters_are(world: World, traffic: Traffic) -> None:
    """Each bad record by its origin, as it was sent; nothing else."""
    kafka = world.settings.kafka
    records = topic_records(kafka, kafka.dead_letter_topic)
    letters = {record.key.decode(): decode_dead_letter(record.value) for record in records}
    assert {origin: (letter.key, letter.value) for origin, letter in letters.items()} == traffic.bad
