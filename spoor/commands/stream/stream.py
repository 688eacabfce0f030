"""`spoor stream`: one worker of the consumer group."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spoor.base.errors import UsageError
from spoor.commands import options
from spoor.commands.invocation import Invocation
from spoor.console import say

if TYPE_CHECKING:
    from spoor.config import Settings


@click.group(invoke_without_command=True)
@options.release
@click.option("--count", type=options.COUNT, help="Stop after so many records.")
@click.option("--timeout-seconds", type=options.POSITIVE, help="Stop after so long. Default: work until interrupted.")
@click.option("--from-lake", is_flag=True, help="A group's first start: begin where the last backfill ended.")
@click.option("--rewind", "rewind_ms", type=options.DURATION, help="Replay the records of the last DURATION, e.g. 10m.")
@click.option("--summary", type=options.LocalPath(), metavar="FILE", help="Write the run's figures there as JSON.")
@options.dry_run
@options.json
@click.pass_context
def stream(
    ctx: click.Context,
    releases: tuple[str, ...],
    count: int | None,
    timeout_seconds: float | None,
    from_lake: bool,
    rewind_ms: int | None,
    summary: Path | None,
    dry_run: bool,
) -> None:
    """Keep histories and embeddings fresh.

    One worker of the consumer group: events from Kafka, rows to Feast and to the embedding topics. The commands below
    start no worker: they give orders to the group's running workers, or show their state.
    """
    if ctx.invoked_subcommand is not None:
        return
    if from_lake and rewind_ms is not None:
        raise UsageError("--from-lake begins a group, --rewind moves one back", hint="give one of them")
    from spoor.activity.lake import open_lake
    from spoor.base.files import refuse_foreign_file
    from spoor.broker.create_topics import ensure_topics
    from spoor.feature_repo.releases import live_releases
    from spoor.streaming.orders.control import group_members
    from spoor.streaming.orders.handover import start_after_backfill
    from spoor.streaming.pipeline.stores import releases_to_keep_fresh
    from spoor.streaming.worker import run_worker

    invocation = ctx.ensure_object(Invocation)
    settings = invocation.settings()
    if summary is not None:
        refuse_foreign_file(summary, ours=lambda head: b'"dead_letters"' in head, what="summary of a worker")
    if releases:
        settings = replace(settings, stream=replace(settings.stream, releases=releases))
    names = releases_to_keep_fresh(settings)
    say(f"group `{settings.stream.group}` at {settings.kafka.address}, releases: {', '.join(names)}")
    if dry_run:
        moved = {} if rewind_ms is None else _rewind(settings, rewind_ms, dry_run=True)
        live = [] if settings.stream.releases else live_releases(settings.features.releases_folder)
        shown = {"releases": names, "topic": settings.kafka.topic, "rewound": moved, "dry_run": True}
        shown["not_applied"] = [release.name for release in live if release.name not in names]
        invocation.emit(shown, "nothing was done")
        return
    activity, *others = ensure_topics(settings.kafka, releases=names, reads_events=True)
    for topic in (activity, *others):
        say(topic.describe())
    if (workers := group_members(settings.kafka, settings.stream.group)) >= activity.partitions:
        say(f"the group has {workers} workers for {activity.partitions} partitions: one more can only stand by")
    if from_lake:
        for partition, offset in start_after_backfill(settings, open_lake(settings.lake)).items():
            say(f"partition {partition}: begins at offset {offset:,}")
    if rewind_ms is not None:
        _rewind(settings, rewind_ms)
    result = run_worker(settings, count=count, timeout_seconds=timeout_seconds, summary_file=summary)
    text = f"{result.events:,} events of {_users(result.users)} in {result.seconds:.1f} s, "
    text += f"{result.dead_letters:,} dead letters"
    if result.freshness_p50_ms is not None and result.freshness_p99_ms is not None:
        text += f", freshness p50/p99 {result.freshness_p50_ms:,.0f}/{result.freshness_p99_ms:,.0f} ms"
    invocation.emit(result, text)


def _rewind(settings: Settings, duration_ms: int, *, dry_run: bool = False) -> dict[int, tuple[int, int]]:
    """Moves the group back, and says so. Assumes that the broker's clock and this machine's agree."""

    from spoor.broker.reach import require_broker
    from spoor.streaming.orders.handover import rewind

    require_broker(settings.kafka)
    moved = rewind(settings, to_ms=time.time_ns() // 1_000_000 - duration_ms, dry_run=dry_run)
    for partition, (before, now) in moved.items():
        say(f"partition {partition}: back from offset {before:,} to {now:,}")
    say(f"{sum(before - now for before, now in moved.values()):,} records are replayed")
    return moved


def _users(count: int) -> str:
    from spoor.streaming.status.metrics import MOST_USERS

    return f"{'at least ' if count >= MOST_USERS else ''}{count:,} users"
