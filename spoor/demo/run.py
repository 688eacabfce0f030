"""`spoor demo`: the main job from Kafka to a ranker's feature row, on real data, with nothing but Python.

Every step calls what the command calls that it prints, with the settings file that the demo writes to
runs/demo/spoor.toml; all it makes lies in runs/demo/. A finished step is noted there and reused by the next run; an
interrupted one is done again, which ends the same, because every step may be repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tomli_w

from spoor.base.errors import InfrastructureError, ProblemsFound, UsageError
from spoor.base.files import Manifest, atomic_path, atomic_write
from spoor.config import Settings, load_settings
from spoor.console import say, to_json
from spoor.demo.data import MOVIELENS, DemoData, cut_timeline, load_demo_data

if TYPE_CHECKING:
    from spoor.demo.steps import Step

RELEASE = "demo-1"
LIKED = ("rate_4", "rate_5")  # MovieLens' ratings that count as positive
WORKER_SECONDS = 180.0  # for the worker to join, and again to catch up
DAY_MS = 86_400_000
PRETRAIN_MINUTES = 1.0, 10.0  # and one for each 100,000 events: at most; unless pretrain.max_minutes is given


@dataclass(frozen=True)
class Demo:
    """What every step needs. Times are ms since 1970 UTC."""

    folder: Path
    settings: Settings
    data: DemoData
    t70: int  # before it: the encoder's training events
    t90: int  # from it on: today
    positive_actions: tuple[str, ...]

    @property
    def end(self) -> int:
        return int(pc.max(self.data.events["timestamp"]).as_py()) + 1

    @property
    def events_file(self) -> Path:
        return self.folder / "events.parquet"

    @property
    def steps(self) -> Manifest:
        return Manifest(self.folder / "steps")

    @property
    def config(self) -> Path:
        return self.folder / "spoor.toml"


def run_demo(
    settings: Settings, *, folder: Path = Path("runs/demo"), data: Path | None = None, items: Path | None = None
) -> dict[str, Any]:
    """Runs what is left of the demo and returns what each step returned, the path of the report, and the seconds.

    Raises UsageError (the folder holds a demo on other data), InfrastructureError, ProblemsFound (verify found
    differences)."""
    from spoor.demo.report import print_summary, report
    from spoor.demo.steps import STEPS

    started = time.monotonic()
    demo = _prepare(settings, folder, data, items)
    say(f"{demo.data.name} from {demo.data.source}; everything goes to {folder}/")
    say(f"$ export SPOOR_CONFIG={quote(str(demo.config))}")
    done = {step.name: _run_step(demo, step) for step in STEPS}
    result = report(demo, done)
    print_summary(demo, result)
    if done["verify"]["differences"]:
        raise ProblemsFound(
            f"verify found {done['verify']['differences']:,} differences",
            hint=f"`spoor --config {demo.config} verify --json` shows examples",
        )
    return {"steps": done, "report": str(folder / "report.html"), "seconds": round(time.monotonic() - started, 1)}


def _run_step(demo: Demo, step: Step) -> dict[str, Any]:
    say(f"\n{step.title}")
    for command in step.commands(demo):
        say(f"$ {command}")
    done = demo.steps.get(step.name)
    if done is not None and not step.always:
        say(f"reused: {step.outcome(done)}")
        return done
    before = time.monotonic()
    done = to_json(step.run(demo))
    done |= {"step_seconds": round(time.monotonic() - before, 1)}
    demo.steps.add(step.name, done)
    say(f"{step.outcome(done)} ({done['step_seconds']} s)")
    return done


def _prepare(settings: Settings, folder: Path, data: Path | None, items: Path | None) -> Demo:
    """The data, the settings file and the Feast repo; refuses a folder that holds a demo on other data."""
    from spoor.store.repo import create_repo

    loaded = load_demo_data(settings, data=data, items=items)
    t70, t90 = cut_timeline(loaded.events)
    positive = LIKED if loaded.name == MOVIELENS else ()
    identity = {"data": loaded.name, "events": _fingerprint(loaded.events)}
    known = Manifest(folder).get("demo")
    if known is not None and known != identity:
        raise UsageError(
            f"`{folder}` holds the demo on {known['data']}, this is {loaded.name}",
            hint="give another folder with --folder, or stop its Kafka with "
            f"`spoor --config {quote(str(folder / 'spoor.toml'))} services down` and remove this one",
        )
    config = folder / "spoor.toml"
    if known is None:
        _refuse_foreign(folder, config)
        atomic_write(config, _config(settings, loaded.events, positive).encode())
        demo_settings = load_settings(file=config)
        create_repo(folder / "feature_repo", online_store={"type": "sqlite"}, state_folder=folder / "state" / "feast")
        with atomic_path(folder / "events.parquet") as temporary:
            pq.write_table(loaded.events, temporary)
        Manifest(folder).add("demo", identity)
    else:
        demo_settings = load_settings(file=config)
    return Demo(folder, demo_settings, loaded, t70, t90, positive)


def _refuse_foreign(folder: Path, config: Path) -> None:
    """Raises UsageError where the folder holds other things than a demo that was interrupted."""
    begun = config.is_file() and config.read_bytes().startswith(_CONFIG_HEAD.splitlines()[0].encode())
    if os.path.lexists(folder) and not begun and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            f"`{folder}` exists and holds no demo, whose files would replace those of the same name",
            hint="give a new or empty folder with --folder",
        )


# What DuckDB says about itself at the end of a process.
_LEAKS = re.compile(r"nanobind: |See https://nanobind|\s*- (leaked|\.\.\. skipped)")

_CONFIG_HEAD = """\
# Written by `spoor demo`; a password comes from the environment (SPOOR_KAFKA__SASL_PASSWORD).
# stream.as_of is "event" since the traffic is from the past: rows were known when their newest event happened.
"""


def _config(settings: Settings, events: pa.Table, positive_actions: tuple[str, ...]) -> str:
    """The demo's settings file. A broker that the user has configured is used, under topics of the demo's own."""
    kafka = settings.kafka
    broker: dict[str, Any]
    if kafka.embedded:
        port = _free_port(kafka.port)
        broker = {"port": port, "controller_port": _free_port(max(kafka.controller_port, port + 1))}
    else:
        keys = ["bootstrap_servers", "security_protocol", "sasl_mechanism", "sasl_username"]
        keys += ["ssl_cafile", "ssl_certfile", "ssl_keyfile"]
        broker = {key: getattr(kafka, key) for key in keys if getattr(kafka, key)}
        names = ("topic", "dead_letter_topic", "embedding_topic_prefix")
        broker |= {name: f"spoor-demo.{getattr(kafka, name)}" for name in names}
    content = {
        "state_folder": "state",
        "kafka": broker,
        "events": {f"{kind}s": sorted(pc.unique(events[kind]).to_pylist()) for kind in ("action", "surface")},
        "stream": {"as_of": "event"},
        "pretrain": {
            "positive_actions": list(positive_actions),
            "max_minutes": pretrain_minutes(settings, len(events)),
        },
    }
    return _CONFIG_HEAD + tomli_w.dumps(content)


def pretrain_minutes(settings: Settings, events: int) -> float:
    """Getting ready takes longer with more events, and is part of the time."""
    if "max_minutes" in settings.given("pretrain"):
        return settings.pretrain.max_minutes
    least, most = PRETRAIN_MINUTES
    return round(min(least + events / 100_000, most), 1)


def _free_port(first: int) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise InfrastructureError(f"no free port from {first} to {first + 99}", hint="set kafka.port to a free one")


def _fingerprint(events: pa.Table) -> str:
    digest = hashlib.sha256()
    for column in events.combine_chunks().columns:
        for value in column.to_pylist():
            digest.update(f"{value}\0".encode())
    return digest.hexdigest()


def run_command(demo: Demo, *command: str) -> str:
    """Runs another program (Feast's own command line) with the demo's settings; its output if it succeeds."""
    program = Path(sys.executable).parent / command[0]
    environment = {**os.environ, "SPOOR_CONFIG": str(demo.config.absolute()), "FEAST_USAGE": "False"}
    done = subprocess.run(
        [str(program), *command[1:]],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode:
        last = "\n".join([line for line in (done.stdout + done.stderr).splitlines() if not _LEAKS.match(line)][-10:])
        raise InfrastructureError(
            f"`{' '.join(command)}` failed:\n{last}", hint="run it by hand to see all of its output"
        )
    return done.stdout


class Worker:
    """`spoor stream` as a process of its own, as an operator would run it."""

    def __init__(self, demo: Demo, *, seconds: float) -> None:
        """`seconds`: after which it stops by itself, so that a killed demo leaves no worker behind for ever."""
        self._seconds = seconds
        self._summary = demo.folder / "state" / "stream-summary.json"
        self._log = demo.folder / "stream.log"
        self._demo = demo

    def __enter__(self) -> Worker:
        command = [sys.executable, "-m", "spoor", "--config", str(self._demo.config)]
        command += ["stream", "--from-lake", "--summary", str(self._summary)]
        command += ["--timeout-seconds", str(self._seconds)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """`what` it has done then. Raises InfrastructureError with the worker's last words if it dies or takes too
        long."""
        deadline = time.monotonic() + WORKER_SECONDS
        while not condition():
            try:
                self._process.wait(0.2)
                found = f"ended with exit code {self._process.returncode} before it had {what}"
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                found = f"has not {what} within {WORKER_SECONDS:.0f} s"
            last = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
            raise InfrastructureError(f"the worker {found}:\n{last}", hint=f"the whole log is in {self._log}")

    def stop(self) -> dict[str, Any]:
        """SIGTERM, as an orchestrator would; returns the worker's summary."""
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(WORKER_SECONDS) != 0:
            raise InfrastructureError("the worker did not stop cleanly", hint=f"see {self._log}")
        return json.loads(self._summary.read_bytes())


def time_text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
