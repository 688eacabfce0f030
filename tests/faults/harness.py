"""A world to break: a topic, a Feast repo, a lake, real worker processes, and how many of them were killed.

A scenario is `Traffic` (tests/faults/traffic.py: what the producers do), faults (what the test does to workers, jobs
and servers meanwhile), and the fixture `judged` at the end: `spoor verify` finds nothing, and neither does the judge
(tests/faults/judge.py), which shares no code with the product.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from spoor.broker.create_topics import ensure_topics
from spoor.broker.reader import group_lag
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings, load_settings
from spoor.store.repo import apply, create_repo
from spoor.streaming.orders.control import group_members
from spoor.streaming.orders.handover import rewind
from tests.conftest import DEADLINE_SECONDS, wait_until
from tests.faults.judge import Case
from tests.faults.names import ACTIONS, ITEMS, SURFACES
from tests.releases import save_untrained_release
from tests.zygote import Forked, Zygote

ROOT = Path(__file__).parents[2]
SPOOR = (sys.executable, "-m", "spoor")
LONG_SECONDS = 600.0  # for what takes minutes on busy cores
Process = subprocess.Popen[bytes] | Forked


@dataclass(frozen=True)
class Kills:
    """What SIGKILL has hit. `at_work`: workers with a batch under way, and jobs that held their lock."""

    commands: Counter[str]
    places: Counter[str]  # where the workers that were at work had been last
    at_work: int

    @property
    def total(self) -> int:
        return self.commands.total()


@dataclass
class World:
    """`config` is the settings file that every process of this test reads."""

    folder: Path
    config: Path
    settings: Settings
    releases: tuple[str, ...]
    zygote: Zygote | None = None  # forks the processes; without it each is started from nothing
    processes: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    say: Callable[[str], None] = print
    _told: float = 0.0
    _at_work: list[Process] = field(default_factory=list)  # jobs that held their lock when they were killed

    def spoor(self, *arguments: str, codes: Sequence[int] = (0,)) -> dict[str, Any]:
        """Runs a command to its end and returns its JSON object; it must exit with one of `codes`."""
        done = self.start(*arguments, "--json", output=subprocess.PIPE)
        out, _ = done.communicate(timeout=LONG_SECONDS)
        assert done.returncode in codes, (arguments, done.returncode, out[-2000:], self.log(done)[-3000:])
        return json.loads(out)

    def tell(self, what: str) -> None:
        """A line of progress every few seconds."""
        if time.monotonic() > self._told + 10:
            self._told = time.monotonic()
            self.say(what)

    def forget_members(self) -> None:
        """Kafka takes the group's members out at once, and need not wait until the sessions of the dead are over; where
        the group is not ready for that, it waits."""
        group = self.settings.stream.group
        with suppress(KafkaError), closing(KafkaAdminClient(**self.settings.kafka.client_options())) as admin:
            members = admin.describe_groups([group])[group]["members"]
            gone = [MemberToRemove(member_id=member["member_id"]) for member in members]
            if gone:
                admin.remove_group_members(group, gone)

    def worker(self, fail_point: str = "") -> Process:
        self.workers.append(self.start("stream", fail_point=fail_point))
        return self.workers[-1]

    def start(
        self,
        *arguments: str,
        output: int = subprocess.DEVNULL,
        program: Sequence[str] | None = None,
        fail_point: str = "",
    ) -> Process:
        """`program`: in place of `spoor`, and not forked."""
        log = self.folder / f"process-{len(self.processes)}.log"
        arguments = ("--config", str(self.config), *arguments)
        if self.zygote is not None and program is None:
            output_file = log.with_suffix(".out")
            process: Process = self.zygote.start(
                arguments, folder=self.folder, stdout=output_file, stderr=log, fail_point=fail_point
            )
        else:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            program = program or ((sys.executable, "-m", "tests.fail_points", fail_point) if fail_point else SPOOR)
            with open(log, "wb") as errors:
                process = subprocess.Popen([*program, *arguments], stdout=output, stderr=errors, env=environment)
        self.processes.append(process)
        return process

    def kill(self, job: Process) -> None:
        """Freezes a job, so that what it was doing can be seen, and kills it. It may have ended by itself."""
        job.send_signal(signal.SIGSTOP)
        if _holds_lock(job.pid):
            self._at_work.append(job)
        job.kill()
        job.wait(DEADLINE_SECONDS)

    def kills(self) -> Kills:
        """What SIGKILL has ended so far."""
        killed = [process for process in self.processes if process.poll() == -signal.SIGKILL]
        places = Counter(process.place for process in killed if isinstance(process, Forked) and process.under_way > 0)
        at_points = sum("fail point" in self.log(process) for process in killed if not isinstance(process, Forked))
        jobs = sum(process in self._at_work for process in killed)
        return Kills(Counter(map(_command, killed)), places, at_work=places.total() + at_points + jobs)

    def log(self, process: Process) -> str:
        return (self.folder / f"process-{self.processes.index(process)}.log").read_text()

    def await_exit(self, process: subprocess.Popen[bytes], code: int) -> None:
        try:
            found = process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            found = None
        assert found == code, f"exit {found}, expected {code}:\n{self.log(process)[-3000:]}"

    def stop(self, *processes: Process) -> None:
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
        return sum(self.log(worker).count(" spoor.streaming.status.lookout partitions ") for worker in self.workers)

    def total(self, figure: str) -> int:
        """The sum of a figure over all the workers' lines per batch."""
        logs = map(self.log, self.workers)
        return sum(int(found) for log in logs for found in re.findall(rf" batch .* {figure}=(\d+)", log))

    def producer(self, **more: Any) -> KafkaProducer:
        """One that comes back within a second of the broker, and gives nothing up before a test does."""
        patience = {"max_block_ms": 300_000, "delivery_timeout_ms": 300_000, "reconnect_backoff_max_ms": 1000}
        return KafkaProducer(**self.settings.kafka.client_options(), **patience, **more)

    def rewind(self) -> None:
        """As `spoor stream --rewind 1h`, once the group has no members."""
        wait_until(lambda: self.members() == 0, "the workers have left their group")
        rewind(self.settings, to_ms=time.time_ns() // 1_000_000 - 3_600_000)

    def case(self, **more: Any) -> Case:
        """What the judge has to know of the place; `more`: of what happened there."""
        kafka, features = self.settings.kafka, self.settings.features
        return Case(
            address=kafka.address,
            topic=kafka.topic,
            dead_letter_topic=kafka.dead_letter_topic,
            embedding_topic_prefix=kafka.embedding_topic_prefix,
            feature_repo=features.feature_repo,
            offline_folder=features.offline_folder,
            max_events=self.settings.history.max_events,
            **{"lake_folder": self.settings.lake.folder, "releases": self.releases} | more,
        )

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
    session_seconds: float = 6.0,
    skew_seconds: int = 300,
    batch_seconds: float = 0.2,
    zygote: Zygote | None = None,
) -> World:
    """Feast is applied, the topics are there. A few items, an action and a surface in the traffic
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
session_timeout_seconds = {session_seconds}
[events]
max_skew_seconds = {skew_seconds}
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
batch_seconds = {batch_seconds}
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
    return World(folder, config, settings, releases, zygote)


@dataclass
class Fleet:
    """Workers that are started again when they end, as an orchestrator does. `fail_points` are handed out in turn."""

    world: World
    size: int
    fail_points: Iterator[str] = field(default_factory=lambda: iter(()))
    running: list[Process] = field(default_factory=list)
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

    def kill(self, worker: Process) -> None:
        """`tend` starts another one."""
        worker.kill()
        worker.wait(DEADLINE_SECONDS)

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


def _holds_lock(pid: int) -> bool:
    """Whether the frozen process has a job's lock file open."""
    try:
        return any(os.readlink(link).endswith(".lock") for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended
        return False


def _command(process: Process) -> str:
    """Such as `stream` or `release retire`."""
    arguments = [str(argument) for argument in process.args]  # pyright: ignore[reportGeneralTypeIssues]
    first, *more = arguments[arguments.index("--config") + 2 :]
    return f"{first} {more[0]}" if first == "release" else first
