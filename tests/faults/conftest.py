"""Worlds on the session's broker, and the page that a complete run writes: `make faults`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spoor.config import Settings
from tests.faults import page
from tests.faults.harness import Traffic, World, judge, new_world
from tests.redis_servers import RedisServer

_ROWS: list[page.Row] = []
_FAILED: list[str] = []
NewWorld = Callable[..., World]
Judged = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-page", type=Path, help="Write what the scenarios did and found to this file.")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _FAILED.append(report.nodeid.rpartition("::")[2])


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--faults-page")
    if target is not None:
        target.write_text(page.text(_ROWS, _FAILED))


@pytest.fixture
def make_world(tmp_path: Path, kafka_settings: Settings) -> Iterator[NewWorld]:
    """make_world(online_store=…, …): as `new_world`, in this test's folder, on a topic of its own. Without a Kafka of
    the test's own it is on the session's broker."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(new_world(tmp_path, **{"kafka": kafka_settings.kafka} | options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.end()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """redis_server(options): a server of this test's own."""
    servers: list[RedisServer] = []

    def start(*options: str, **more: Any) -> RedisServer:
        folder = tmp_path / f"redis-{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(folder, options, **more))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def judged() -> Judged:
    """judged(world, traffic, scenario, faults=…, found=…): judges, and adds a row to the page."""
    started = time.monotonic()

    def judge_and_tell(world: World, traffic: Traffic, scenario: str, *, faults: int, found: str) -> None:
        figures = judge(world, traffic)
        _ROWS.append(
            page.Row(
                scenario=scenario,
                faults=faults,
                records=traffic.records,
                bad=len(traffic.bad),
                workers=len(world.workers),
                rebalances=world.rebalances(),
                found=found,
                seconds=time.monotonic() - started,
                **figures,
            )
        )

    return judge_and_tell
