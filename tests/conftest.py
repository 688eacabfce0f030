"""What several rooms' tests share: settings in a temporary folder, and genuine servers on free ports.

A server starts once per session, at its first use; tests share it and keep apart by names of their own.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from spoor.broker.settings import KafkaSettings
from spoor.config import Settings, load_settings
from spoor.services import local as services
from tests.zygote import Zygote

_EXIT_STATUS = pytest.StashKey[int]()


DEADLINE_SECONDS = 120.0


def wait_until(
    condition: Callable[[], bool], what: str, *, seconds: float = DEADLINE_SECONDS, every: float = 0.1
) -> None:
    """Polls until the condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        pause.wait(every)


_PORTS = range(15_000, 32_000)  # below those that the kernel gives to outgoing connections
_GIVEN: set[int] = set()


def free_port() -> int:
    """A TCP port on 127.0.0.1 where nobody listens. It stays free until the test uses it: no port is given twice, and
    processes that share a run (pytest-xdist) give ports of their own."""
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    own = _PORTS[int(worker.removeprefix("gw")) :: int(workers)]
    while True:
        port = random.SystemRandom().choice(own)
        if port in _GIVEN:
            continue
        _GIVEN.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command run in this process sets up logging; the next test finds levels and handlers as they were."""
    root = logging.getLogger()
    handlers, levels = list(root.handlers), _levels()
    yield
    root.handlers[:] = handlers
    for name, level in _levels().items():
        if level != levels.get(name, logging.NOTSET):
            logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


def _levels() -> dict[str | None, int]:
    """Every logger's own level by its name; the root's is None."""
    named = {
        n: found.level for n, found in logging.root.manager.loggerDict.items() if isinstance(found, logging.Logger)
    }
    return {None: logging.root.level} | named


@pytest.fixture
def free_ports() -> tuple[int, int]:
    return free_port(), free_port()


def settings_in(folder: Path, **flags: object) -> Settings:
    """Settings whose every path lies in `folder`, untouched by the machine's environment and by ./spoor.toml. Flags
    are written `section__key=value`."""
    file = folder / "spoor.toml"
    file.touch()
    given = {key.replace("__", "."): value for key, value in flags.items()}
    return load_settings(file=file, environ={}, flags={"state_folder": folder / "state"} | given)


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """`settings_in` this test's folder."""
    return partial(settings_in, tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a state folder of their own. The broker's port is free: no broker answers there."""
    return settings_in(tmp_path, kafka__port=free_port(), kafka__controller_port=free_port())


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """One genuine Kafka broker for the whole session; its topics have the default names and do not exist yet."""
    folder = tmp_path_factory.mktemp("kafka")
    server = settings_in(folder, kafka__port=free_port(), kafka__controller_port=free_port())
    services.up(server)
    try:
        yield server.kafka
    finally:
        services.down(server)


@pytest.fixture
def kafka_settings(settings: Settings, kafka: KafkaSettings) -> Settings:
    """`settings` on the session's broker, with topic names that no other test uses."""
    name = uuid.uuid4().hex[:12]
    own = dataclasses.replace(
        kafka,
        topic=f"activity-{name}",
        dead_letter_topic=f"activity-dead-letters-{name}",
        embedding_topic_prefix=f"user-embeddings-{name}.",
    )
    return dataclasses.replace(settings, kafka=own)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Forks workers and jobs in a fraction of a second."""
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    try:
        yield zygote
    finally:
        zygote.stop()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # pytest-xdist ignores SIGINT, which processes of tests inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process before DuckDB's binding prints pages about its own leaks below the summary."""
    if _EXIT_STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_EXIT_STATUS])
