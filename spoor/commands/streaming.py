"""`spoor stream` and `spoor dlq`: the worker, and the records it could not take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spoor.commands.invocation import (
    Invocation,
    dry_run_option,
    json_option,
    pass_invocation,
    release_option,
    time_text,
)

if TYPE_CHECKING:
    from streaming.dead_letters import DeadLetter

_SHOWN_BYTES = 60  # of a dead letter's original value


@click.command()
@release_option
@click.option("--count", type=int, help="Stop after so many records.")
@click.option("--timeout-seconds", type=float, help="Stop after so long. Default: work until interrupted.")
@click.option("--from-lake", is_flag=True, help="A group's first start: begin where the last backfill ended.")
@click.option(
    "--summary", type=click.Path(path_type=Path), metavar="FILE", help="Write the run's figures there as JSON."
)
@dry_run_option
@json_option
@pass_invocation
def stream(
    invocation: Invocation,
    releases: tuple[str, ...],
    count: int | None,
    timeout_seconds: float | None,
    from_lake: bool,
    summary: Path | None,
    dry_run: bool,
) -> None:
    """Keep histories and embeddings fresh.

    One worker of the consumer group: events from Kafka, rows to Feast and to the embedding topics.
    """
    from activity.lake import Lake
    from spoor.console import say
    from spoor.kafka_admin import ensure_topics
    from streaming.handover import start_after_backfill
    from streaming.stores import releases_to_keep_fresh
    from streaming.worker import run_worker

    settings = invocation.settings()
    if releases:
        settings = replace(settings, stream=replace(settings.stream, releases=releases))
    names = releases_to_keep_fresh(settings)
    say(f"group `{settings.stream.group}` at {settings.kafka.address}, releases: {', '.join(names)}")
    if dry_run:
        invocation.emit({"releases": names, "topic": settings.kafka.topic, "dry_run": True}, "nothing was done")
        return
    for topic in ensure_topics(settings.kafka, releases=names):
        say(topic.describe())
    if from_lake:
        lake = Lake(settings.lake.folder, buckets=settings.lake.buckets)
        for partition, offset in start_after_backfill(settings, lake).items():
            say(f"partition {partition}: begins at offset {offset:,}")
    result = run_worker(settings, count=count, timeout_seconds=timeout_seconds, summary_file=summary)
    invocation.emit(
        result,
        f"{result.events:,} events of {result.users:,} users in {result.seconds:.1f} s, "
        f"{result.dead_letters:,} dead letters, freshness p50/p99 "
        f"{_milliseconds(result.freshness_p50_ms)}/{_milliseconds(result.freshness_p99_ms)}",
    )


@click.group()
def dlq() -> None:
    """Dead letters: records that were no events."""


@dlq.command("list")
@click.option("--reason", help="Those of one reason only, e.g. not-json.")
@click.option("--limit", type=click.IntRange(min=0), help="The newest so many only.")
@json_option
@pass_invocation
def list_letters(invocation: Invocation, reason: str | None, limit: int | None) -> None:
    """Show what was refused, and why."""
    from spoor.services import require_broker
    from streaming.replay import list_dead_letters

    settings = invocation.settings()
    require_broker(settings.kafka)
    letters = list_dead_letters(settings, limit=limit, reason=reason)
    lines = [_line(letter) for letter in letters]
    invocation.emit({"dead_letters": [_json(letter) for letter in letters]}, "\n".join(lines) or "no dead letters")


@dlq.command()
@click.option("--reason", help="Those of one reason only, e.g. in-the-future.")
@dry_run_option
@json_option
@pass_invocation
def replay(invocation: Invocation, reason: str | None, dry_run: bool) -> None:
    """Send dead letters through the stream again.

    Once their cause is mended; each is closed when it has been sent.
    """
    from spoor.services import require_broker
    from streaming.replay import replay_dead_letters

    settings = invocation.settings()
    require_broker(settings.kafka)
    result = replay_dead_letters(settings, reason=reason, dry_run=dry_run)
    reasons = ", ".join(f"{name} {count:,}" for name, count in result.by_reason.items())
    verb = "would be replayed" if dry_run else "replayed"
    invocation.emit(result, f"{result.replayed:,} dead letters {verb}" + (f": {reasons}" if reasons else ""))


def _line(letter: DeadLetter) -> str:
    value = (letter.value or b"")[:_SHOWN_BYTES]
    return (
        f"{letter.origin}  {time_text(letter.append_time_ms)}  {letter.reason}  "
        f"{letter.field}: found {letter.found}, expected {letter.expected}  {value!r}"
    )


def _json(letter: DeadLetter) -> dict[str, Any]:
    """The dead letter as its topic holds it: the original bytes in base64."""
    import json

    from streaming.dead_letters import encode_dead_letter

    return json.loads(encode_dead_letter(letter)[1])


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"
