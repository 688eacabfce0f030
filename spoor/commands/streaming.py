"""`spoor stream` and `spoor dlq`: the worker, orders to running workers, and the records they could not take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spoor.base.errors import UsageError
from spoor.commands.invocation import (
    COUNT,
    DURATION,
    NOT_NEGATIVE,
    POSITIVE,
    Invocation,
    LocalPath,
    dry_run_option,
    json_option,
    pass_invocation,
    release_option,
    time_text,
)

if TYPE_CHECKING:
    from spoor.config import Settings
    from spoor.streaming.records.dead_letters import DeadLetter

_SHOWN_BYTES = 60  # of a dead letter's original value


@click.group(invoke_without_command=True)
@release_option
@click.option("--count", type=COUNT, help="Stop after so many records.")
@click.option("--timeout-seconds", type=POSITIVE, help="Stop after so long. Default: work until interrupted.")
@click.option("--from-lake", is_flag=True, help="A group's first start: begin where the last backfill ended.")
@click.option("--rewind", "rewind_ms", type=DURATION, help="Replay the records of the last DURATION, e.g. 10m.")
@click.option("--summary", type=LocalPath(), metavar="FILE", help="Write the run's figures there as JSON.")
@dry_run_option
@json_option
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
    from spoor.activity.lake import Lake
    from spoor.base.files import refuse_foreign_file
    from spoor.console import say
    from spoor.operations.kafka_admin import ensure_topics
    from spoor.store.applied import live_names
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
        left_out = [] if settings.stream.releases else live_names(settings.features).not_applied
        shown = {"releases": names, "topic": settings.kafka.topic, "rewound": moved, "dry_run": True}
        shown["not_applied"] = [name for name in left_out if name not in names]
        invocation.emit(shown, "nothing was done")
        return
    activity, *others = ensure_topics(settings.kafka, releases=names, reads_events=True)
    for topic in (activity, *others):
        say(topic.describe())
    if (workers := group_members(settings.kafka, settings.stream.group)) >= activity.partitions:
        say(f"the group has {workers} workers for {activity.partitions} partitions: one more can only stand by")
    if from_lake:
        lake = Lake(settings.lake.folder, buckets=settings.lake.buckets)
        for partition, offset in start_after_backfill(settings, lake).items():
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
    import time

    from spoor.console import say
    from spoor.services.local import require_broker
    from spoor.streaming.orders.handover import rewind

    require_broker(settings.kafka)
    moved = rewind(settings, to_ms=time.time_ns() // 1_000_000 - duration_ms, dry_run=dry_run)
    for partition, (before, now) in moved.items():
        say(f"partition {partition}: back from offset {before:,} to {now:,}")
    say(f"{sum(before - now for before, now in moved.values()):,} records are replayed")
    return moved


def _order(described: Callable[[], None]) -> click.Command:
    """The command that gives the workers the order of this name (orders.py) and waits for their reports;
    the function's docstring is its help."""
    order = described.__name__

    @stream.command(order, help=described.__doc__)
    @click.option(
        "--timeout-seconds",
        type=NOT_NEGATIVE,
        default=120.0,
        show_default=True,
        help="How long to wait for the workers' reports.",
    )
    @json_option
    @pass_invocation
    def give(invocation: Invocation, timeout_seconds: float) -> None:
        from spoor.operations import orders as stream_orders

        result = getattr(stream_orders, order)(invocation.settings(), timeout_seconds=timeout_seconds)
        invocation.emit(result, result.text())

    return give


@_order
def pause() -> None:
    """Pause all workers.

    They finish what they have taken, stay in their group and stay healthy; workers that start later are paused too. The
    command ends when all of them report it. Repeating it changes nothing.
    """


@_order
def resume() -> None:
    """Resume paused workers."""


@_order
def reload() -> None:
    """Load new releases into running workers.

    Each worker loads the releases that are live now while it works, and from then on writes all of them with every
    batch. Exit code 1 if a worker could not and keeps the releases that it had, or was started for certain releases.
    """


@stream.command()
@json_option
@pass_invocation
def status(invocation: Invocation) -> None:
    """Show what each worker does and writes."""
    from spoor.operations.orders import status

    result = status(invocation.settings())
    invocation.emit(result, result.text())


@click.group()
def dlq() -> None:
    """List and replay dead letters."""


@dlq.command("list")
@click.option("--reason", help="Only those with this reason, e.g. not-json.")
@click.option("--limit", type=COUNT, help="Only the newest N.")
@json_option
@pass_invocation
def list_letters(invocation: Invocation, reason: str | None, limit: int | None) -> None:
    """List refused records with their reasons."""
    from spoor.services.local import require_broker
    from spoor.streaming.orders.replay import list_dead_letters

    settings = invocation.settings()
    require_broker(settings.kafka)
    letters = list_dead_letters(settings, limit=limit, reason=reason)
    lines = [_line(letter) for letter in letters]
    invocation.emit({"dead_letters": [_json(letter) for letter in letters]}, "\n".join(lines) or "no dead letters")


@dlq.command()
@click.option("--reason", help="Only those with this reason, e.g. in-the-future.")
@dry_run_option
@json_option
@click.pass_context
def replay(ctx: click.Context, reason: str | None, dry_run: bool) -> None:
    """Send dead letters through the stream again.

    Run it once their cause is fixed; each letter is closed when it has been sent. Closed without being sent: events of
    a deleted user from before the deletion, and a letter that refers to a record which retention has deleted. Exit
    code 1 if letters stay open because the topic refuses their size.
    """
    from spoor.activity.lake import Lake
    from spoor.services.local import require_broker
    from spoor.streaming.orders.replay import replay_dead_letters

    invocation = ctx.ensure_object(Invocation)
    settings = invocation.settings()
    require_broker(settings.kafka)
    forgotten = Lake(settings.lake.folder, buckets=settings.lake.buckets).forgotten
    result = replay_dead_letters(settings, reason=reason, dry_run=dry_run, forgotten=forgotten)
    reasons = ", ".join(f"{name} {count:,}" for name, count in result.by_reason.items())
    verb = "would be replayed" if dry_run else "replayed"
    text = f"{result.replayed:,} dead letters {verb}" + (f": {reasons}" if reasons else "")
    if result.gone:
        text += f"; {result.gone:,} {'to be ' if dry_run else ''}closed without being sent, their records are gone"
    if result.too_large:
        text += f"; {result.too_large:,} stay open, `{settings.kafka.topic}` refuses their size (max.message.bytes)"
    if result.forgotten:
        closed = "would be closed" if dry_run else "closed"
        text += f"; {result.forgotten:,} {closed} without being sent: events of deleted users"
    invocation.emit(result, text)
    if result.too_large:
        ctx.exit(1)


def _line(letter: DeadLetter) -> str:
    value = "record deleted" if letter.is_gone else repr((letter.value or b"")[:_SHOWN_BYTES])
    if letter.is_reference:
        value += f" ({letter.size:,} bytes, by reference)"
    return (
        f"{letter.origin}  {time_text(letter.append_time_ms)}  {letter.reason}  "
        f"{letter.field}: found {letter.found}, expected {letter.expected}  {value}"
    )


def _json(letter: DeadLetter) -> dict[str, Any]:
    """The dead letter with the original bytes in base64, those of a reference too if they are still there."""
    import json
    from dataclasses import replace

    from spoor.streaming.records.dead_letters import encode_dead_letter

    shown = json.loads(encode_dead_letter(replace(letter, size=None, sha256=None))[1])
    if letter.is_reference:
        shown |= {"size": letter.size, "sha256": letter.sha256, "gone": letter.is_gone}
    return shown


def _users(count: int) -> str:
    from spoor.streaming.status.metrics import MOST_USERS

    return f"{'at least ' if count >= MOST_USERS else ''}{count:,} users"
