"""How an operator steers a group's running workers, and how one learns what they do.

Orders are one small file for each group in the releases folder, which every worker can read; workers look at it every
second. Reports go the other way through Kafka: a worker's reports are the metadata of the offsets that it commits,
under its member id, so the group's coordinator tells who ought to have reported and nobody can report for another.
docs/decisions/0008-orders-and-reports.md says why.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spoor.base.errors import DataError, InfrastructureError
from spoor.base.files import atomic_write
from spoor.broker.admin import Admin
from spoor.broker.settings import KafkaSettings

_SETTLED = ("Stable", "Empty", "Dead")  # states of a group in which it is known who its members are
_SETTLE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_PROBLEM_BYTES = 600  # Kafka keeps 4096 bytes of metadata beside an offset


@dataclass(frozen=True)
class Orders:
    """What the workers of a group are to do; the default is what they do where nobody gave orders."""

    paused: bool = False
    reload: str = ""  # id of the last order to take up the live releases anew; empty: there was none


@dataclass(frozen=True)
class Report:
    """What one worker did when it committed."""

    member: str  # the worker's id in its group
    releases: tuple[str, ...]  # that are written with every batch
    reload: str  # id of the last such order that it has followed
    paused: bool  # takes no events, and has committed those that it took
    problem: str = ""  # why it has not taken up the live releases when it was told to
    pinned: bool = False  # its releases were named when it started (--release, stream.releases): a reload adds none

    def text(self) -> str:
        problem = self.problem.encode(errors="backslashreplace")[:_PROBLEM_BYTES].decode(errors="ignore")
        return json.dumps(asdict(self) | {"problem": problem}, ensure_ascii=False)


@dataclass(frozen=True)
class GroupState:
    """`partitions`: every one that a worker has, and what that worker has reported with it; None: nothing yet."""

    group: str
    workers: int  # those without a partition included, who stand by and report nothing
    partitions: dict[int, Report | None]

    def all_report(self, condition: Callable[[Report], bool]) -> bool:
        """Whether it holds for the worker of each partition; true where there are no workers."""
        return all(report is not None and condition(report) for report in self.partitions.values())

    def without(self, releases: Collection[str], *, pinned: bool) -> list[int]:
        """Partitions whose worker does not write one of the releases; of workers that are pinned, or of the others."""
        reports = ((partition, report) for partition, report in sorted(self.partitions.items()) if report is not None)
        return [
            partition
            for partition, report in reports
            if report.pinned is pinned and not set(releases) <= set(report.releases)
        ]

    @property
    def problems(self) -> list[str]:
        return sorted({report.problem for report in self.partitions.values() if report is not None and report.problem})


def orders_file(releases_folder: Path, group: str) -> Path:
    return releases_folder / f"stream-{quote(group, safe='')}.json"


def read_orders(releases_folder: Path, group: str) -> Orders:
    """Raises DataError for a file that holds no orders, or cannot be read."""
    path = orders_file(releases_folder, group)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        paused, reload = content["paused"], content["reload"]
        if type(paused) is not bool or type(reload) is not str:
            raise ValueError(f"paused {paused!r}, reload {reload!r}")
        return Orders(paused, reload)
    except FileNotFoundError:
        return Orders()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"`{path}` holds no orders for workers: {type(error).__name__}: {error}",
            hint="remove it: without it workers run, and go on with the releases that they have",
        ) from None


def give_orders(releases_folder: Path, group: str, orders: Orders) -> None:
    """Raises InfrastructureError where the folder cannot be written."""
    atomic_write(orders_file(releases_folder, group), json.dumps(asdict(orders)).encode())


def parse_report(text: str) -> Report | None:
    """None for metadata of other origin: an earlier version's, a rewind's."""
    try:
        content = json.loads(text)
        return Report(**content | {"releases": tuple(content["releases"])})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def group_state(kafka: KafkaSettings, group: str) -> GroupState:
    """Asks Kafka, and waits while the group shares its partitions anew. A report counts where its worker has the
    partition now.

    Raises InfrastructureError where no broker answers, or the group does not settle within a minute."""
    with Admin(kafka) as admin:
        members = _settled_members(admin, group)
        metadata = admin.group_metadata(group, kafka.topic)
    reports = {partition: parse_report(text) for partition, text in metadata.items()}
    partitions: dict[int, Report | None] = {}
    for member in members:
        for partition in _assigned(member, kafka.topic):
            report = reports.get(partition)
            known = report is not None and report.member == member["member_id"]
            partitions[partition] = report if known else None
    return GroupState(group, len(members), partitions)


def group_members(kafka: KafkaSettings, group: str) -> int:
    """Workers in the group that have finished joining; 0 while it shares its partitions anew or has no coordinator yet.
    Raises InfrastructureError where no broker answers."""
    with Admin(kafka) as admin:
        described = admin.group(group)
    return len(described["members"]) if described is not None and described["group_state"] == "Stable" else 0


def _settled_members(admin: Admin, group: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + _SETTLE_SECONDS
    state = "its coordinator is not there"
    while time.monotonic() < deadline:
        if (described := admin.group(group)) is not None:
            state = described["group_state"]
            if state in _SETTLED:
                return described["members"]
        time.sleep(_LOOK_SECONDS)
    raise InfrastructureError(
        f"group `{group}` has not settled within {_SETTLE_SECONDS:.0f} s: {state}",
        hint="do its workers join and leave all the time? look at their logs",
    )


def _assigned(member: dict[str, Any], topic: str) -> list[int]:
    assigned = member["member_assignment"]["assigned_partitions"] if member["member_assignment"] else []
    return [partition for entry in assigned if entry["topic"] == topic for partition in entry["partitions"]]
