"""`spoor stream pause`, `resume`, `reload` and `status`: gives orders to a group's workers and reads their reports."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from spoor.base.errors import InfrastructureError, ProblemsFound
from spoor.base.locks import exclusive
from spoor.base.numbers import number_text
from spoor.broker.create_topics import ensure_topics
from spoor.broker.reach import require_broker
from spoor.config import Settings
from spoor.streaming.orders.control import (
    GroupState,
    Orders,
    Report,
    give_orders,
    group_state,
    orders_file,
    read_orders,
)

_LOOK_SECONDS = 1.0
_REPORT_SECONDS = 30.0
_START_AGAIN = "start the workers again without --release and stream.releases, or with every live release named there"


@dataclass(frozen=True)
class StreamStatus:
    """The orders of a group's workers, and their reports."""

    orders: Orders
    state: GroupState

    def text(self) -> str:
        """The text output: a line for the group and one for each worker."""
        state, ordered = self.state, "paused" if self.orders.paused else "running"
        workers = f"{state.workers} worker{'s' if state.workers != 1 else ''}"
        lines = [f"group `{state.group}`: {workers}, ordered to be {ordered}"]
        by_worker: dict[Report | None, list[int]] = {}
        for partition, report in sorted(state.partitions.items()):
            by_worker.setdefault(report, []).append(partition)
        for report, partitions in by_worker.items():
            place = f"  partitions {' '.join(map(str, partitions))}: "
            if report is None:
                lines.append(place + "not reported yet")
                continue
            doing = "paused" if report.paused else "at work"
            named = ", which were named at its start: `spoor stream reload` adds none" if report.pinned else ""
            lines.append(f"{place}{doing}, writes {', '.join(report.releases)}{named} ({report.member})")
            lines += [f"    not reloaded: {report.problem}"] if report.problem else []
        return "\n".join(lines)


def status(settings: Settings) -> StreamStatus:
    """Raises DataError for damaged orders, InfrastructureError without a broker."""
    require_broker(settings.kafka)
    orders = read_orders(settings.features.releases_folder, settings.stream.group)
    return StreamStatus(orders, group_state(settings.kafka, settings.stream.group))


def pause(settings: Settings, *, timeout_seconds: float) -> StreamStatus:
    """Pauses all workers; returns once each has committed the records that it had taken. Raises as `status`, and
    InfrastructureError if a worker does not report in time."""
    return _order(settings, lambda orders: replace(orders, paused=True), lambda r, _: r.paused, timeout_seconds)


def resume(settings: Settings, *, timeout_seconds: float) -> StreamStatus:
    """Resumes all workers; returns once none is paused. Raises as `pause`."""
    return _order(settings, lambda orders: replace(orders, paused=False), lambda r, _: not r.paused, timeout_seconds)


def reload(settings: Settings, *, timeout_seconds: float) -> StreamStatus:
    """Creates the topics of the live releases; returns once every worker has loaded the releases, or has failed to.

    Raises as `pause`, and ProblemsFound if a worker keeps its earlier releases, or was started for certain releases."""
    from spoor.store.feast_store import live_names  # imports Feast

    live = live_names(settings.features).usable
    ensure_topics(settings.kafka, releases=live, reads_events=True)
    found = _order(
        settings,
        lambda orders: replace(orders, reload=uuid.uuid4().hex),
        lambda report, orders: report.reload == orders.reload,
        timeout_seconds,
    )
    if found.state.problems:
        raise ProblemsFound(
            f"workers go on with the releases that they have: {'; '.join(found.state.problems)}",
            hint="repair or remove that release, then run it again; `spoor stream status` shows what each writes",
        )
    if partitions := found.state.without(live, pinned=True):
        raise ProblemsFound(
            f"the workers of partitions {' '.join(map(str, partitions))} were started for certain releases and take up "
            f"no other; live are {', '.join(live)}",
            hint=_START_AGAIN,
        )
    return found


def unwritten(settings: Settings, releases: Sequence[str]) -> list[str]:
    """The given releases that the worker of some partition does not report as written; empty without workers. Waits up
    to _REPORT_SECONDS for workers that have just got their partitions. Raises InfrastructureError without a broker."""
    require_broker(settings.kafka)
    state = _state_when(settings, lambda state: None not in state.partitions.values(), _REPORT_SECONDS)
    return [name for name in releases if not state.all_report(lambda report: name in report.releases)]  # noqa: B023


def way_to_write(settings: Settings, releases: Sequence[str]) -> str:
    """A hint how to make the workers write these releases: a reload, or a restart of workers started for certain
    releases, which ignore a reload."""
    try:
        require_broker(settings.kafka)
        pinned = group_state(settings.kafka, settings.stream.group).without(releases, pinned=True)
    except InfrastructureError:
        pinned = []
    return _START_AGAIN if pinned else "`spoor stream reload` lets workers take up live releases"


def _order(
    settings: Settings,
    change: Callable[[Orders], Orders],
    followed: Callable[[Report, Orders], bool],
    timeout_seconds: float,
) -> StreamStatus:
    """Writes changed orders, then waits until every worker reports that it follows them."""
    folder, group = settings.features.releases_folder, settings.stream.group
    require_broker(settings.kafka)
    with exclusive(orders_file(folder, group).with_suffix(".lock"), job="an order to the workers"):
        orders = change(read_orders(folder, group))
        give_orders(folder, group, orders)

    def followed_by_all(state: GroupState) -> bool:
        return state.all_report(lambda report: followed(report, orders))

    state = _state_when(settings, followed_by_all, timeout_seconds)
    if not followed_by_all(state):
        raise InfrastructureError(
            f"the order stands, but not every worker of group `{group}` has followed it in "
            f"{number_text(timeout_seconds)} s",
            hint="`spoor stream status` shows what they report, their logs why",
        )
    return StreamStatus(orders, state)


def _state_when(settings: Settings, condition: Callable[[GroupState], bool], timeout_seconds: float) -> GroupState:
    """The group's state once `condition` holds, else the state at the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        state = group_state(settings.kafka, settings.stream.group)
        if condition(state) or time.monotonic() >= deadline:
            return state
        time.sleep(_LOOK_SECONDS)
