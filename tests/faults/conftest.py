"""Worlds on the session's broker, and the page that a complete run writes: `make faults`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from spoor.config import Settings
from tests.faults import page
from tests.faults.harness import World, new_world
from tests.faults.judge import judge
from tests.faults.traffic import Traffic
from tests.redis_servers import RedisServer

_ROWS: list[page.Row] = []
_FAILED: list[str] = []
_RAN: set[str] = set()
NewWorld = Callable[..., World]
Judged = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-page", type=Path, help="Write what the scenarios did and found to this file.")
    parser.addoption("--faults-row", type=Path, help="Append the counts of the run to this file, a row of JSON.")
    parser.addoption(
        "--faults-again", action="store_true", help="Put what runs now into the run of the file's last row."
    )
    parser.addoption(
        "--kills", type=int, default=1000, help="How many kills tests/faults/test_kills.py makes together."
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    test = report.nodeid.rpartition("::")[2]
    _RAN.add(test)
    if report.failed:
        _FAILED.append(test)


def pytest_sessionfinish(session: pytest.Session) -> None:
    options = session.config.getoption
    target, log = options("--faults-page"), options("--faults-row")
    rows, failed, command = _ROWS, _FAILED, f"make faults KILLS={options('--kills')}"
    if log is not None and options("--faults-again"):
        rows, failed = page.completed(log.read_text().splitlines()[-1], rows, failed, ran=_RAN)
        command = f"make faults-again ONLY='{options('keyword')}'"
    if target is not None:
        target.write_text(page.text(rows, failed))
    if log is not None:
        with log.open("a") as file:
            file.write(page.row(rows, failed, command=command) + "\n")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--kills")


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line at once, whatever pytest captures."""
    capture: Any = request.config.pluginmanager.get_plugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    return say


@pytest.fixture
def make_world(tmp_path: Path, kafka_settings: Settings, say: Callable[[str], None]) -> Iterator[NewWorld]:
    """make_world(online_store=…, …): as `new_world`, in this test's folder, on a topic of its own. Without a Kafka of
    the test's own it is on the session's broker."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(new_world(tmp_path, **{"kafka": kafka_settings.kafka} | options))
        worlds[-1].say = say
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
def judged(say: Callable[[str], None], request: pytest.FixtureRequest) -> Judged:
    """judged(world, traffic, scenario, faults=…, found=…): archives, asks both judges, and adds a row to the page.
    `told`: what the judge has to know besides (tests/faults/judge.py: Case). `verified`: whether `spoor verify` can
    agree, as the lake has everything."""
    started = time.monotonic()

    def judge_and_tell(
        world: World,
        traffic: Traffic,
        scenario: str,
        *,
        faults: int,
        found: str,
        told: Mapping[str, Any] | None = None,
        verified: bool = True,
    ) -> None:
        users = differences = None
        if verified:
            world.spoor("archive")
            second = world.spoor("verify", codes=(0, 1))
            users, differences = second["users"], second["differences"]
        case = world.case(sent=traffic.sent, bad=traffic.bad, **told or {})
        verdict = judge(case)
        assert not verdict.differences, f"{len(verdict.differences)} differences:\n" + "\n".join(
            verdict.differences[:20]
        )
        assert not differences, f"spoor verify found {differences} differences"
        assert verdict.users and users in (None, verdict.users)
        kills = world.kills()
        _ROWS.append(
            page.Row(
                scenario=scenario,
                test=request.node.name,
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                faults=faults,
                kills=kills.total,
                at_work=kills.at_work,
                commands=dict(kills.commands),
                places=dict(kills.places),
                records=traffic.records,
                bad=len(traffic.bad),
                workers=len(world.workers),
                rebalances=world.rebalances(),
                users=verdict.users,
                events=verdict.events,
                embeddings=verdict.rows,
                letters=verdict.letters,
                differences=len(verdict.differences),
                verify_differences=differences,
                found=found,
                seconds=time.monotonic() - started,
            )
        )
        say(f"{scenario}: {kills.total:,} kills, {traffic.records:,} records, no difference")

    return judge_and_tell
