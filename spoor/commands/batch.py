"""`spoor archive`, `spoor backfill` and `spoor verify`: the batch jobs."""

from __future__ import annotations

from typing import Literal

import click

from activity.errors import UsageError
from spoor.commands.invocation import (
    DURATION,
    TIME,
    Invocation,
    dry_run_option,
    json_option,
    pass_invocation,
    release_option,
    runner_option,
    runner_options_option,
)


@click.command()
@click.option(
    "--resume/--again", default=True, help="Read what the lake lacks, or every range again.", show_default=True
)
@click.option("--accept-loss", is_flag=True, help="Go on where retention has deleted records that the lake lacks.")
@runner_option
@runner_options_option
@dry_run_option
@json_option
@pass_invocation
def archive(
    invocation: Invocation,
    resume: bool,
    accept_loss: bool,
    runner: str,
    runner_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Bring Kafka's events into the lake."""
    from batch.archive import run_archive
    from spoor.flink import batch_runner
    from spoor.services import require_broker

    settings = invocation.settings()
    require_broker(settings.kafka)
    with batch_runner(settings, runner, runner_options, start=not dry_run) as chosen:
        result = run_archive(settings, dry_run=dry_run, resume=resume, accept_loss=accept_loss, runner=chosen)
    bad = sum(result.bad.values())
    text = (
        f"{result.topic}: {result.planned_records:,} records in {result.items:,} work items to read"
        if dry_run
        else f"{result.topic}: {result.events:,} events to {settings.lake.folder} in {result.seconds:.1f} s, "
        f"{bad:,} bad records, {result.foreign_keys:,} foreign keys"
    )
    invocation.emit(result, text)


@click.command()
@release_option
@click.option("--as-of", "as_of_ms", type=TIME, help="Histories as they were then. Default: all events.")
@click.option("--from", "from_ms", type=TIME, help="Training history for the offline log: as of this time …")
@click.option("--to", "to_ms", type=TIME, help="… up to this one …")
@click.option("--every", "every_ms", type=DURATION, default="1d", show_default=True, help="… so far apart.")
@click.option(
    "--into",
    type=click.Choice(["both", "online", "offline"]),
    default="both",
    show_default=True,
    help="Which stores to write.",
)
@click.option(
    "--publish/--no-publish", default=True, show_default=True, help="Send changed rows to the embedding topics."
)
@click.option("--resume", is_flag=True, help="Go on with what a killed run left.")
@runner_option
@runner_options_option
@dry_run_option
@json_option
@click.pass_context
def backfill(
    ctx: click.Context,
    releases: tuple[str, ...],
    as_of_ms: int | None,
    from_ms: int | None,
    to_ms: int | None,
    every_ms: int,
    into: Literal["both", "online", "offline"],
    publish: bool,
    resume: bool,
    runner: str,
    runner_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Compute and write everybody's embedding.

    Histories come from the lake and go, with their embeddings, to Feast's online store and the offline log. Exit code
    1 if an embedding could not be computed.
    """
    if (from_ms is None) != (to_ms is None):
        raise UsageError("--from and --to belong together: one is missing", hint="give both, or neither")
    from batch.backfill import run_backfill
    from batch.releases import chosen_releases, live_names
    from spoor.console import say
    from spoor.flink import batch_runner
    from spoor.kafka_admin import ensure_topics

    snapshots = None if from_ms is None or to_ms is None else (from_ms, to_ms, every_ms)
    online = into != "offline" and snapshots is None
    invocation = ctx.ensure_object(Invocation)
    settings = invocation.settings()
    chosen = chosen_releases(settings, releases)
    if publish and online and not dry_run:
        for topic in ensure_topics(settings.kafka, releases=live_names(settings)):
            say(topic.describe())
    with batch_runner(settings, runner, runner_options, start=not dry_run) as started:
        result = run_backfill(
            settings,
            releases=chosen,
            as_of_ms=as_of_ms,
            snapshots=snapshots,
            online=online,
            offline=into != "online",
            publish=publish and online,
            resume=resume,
            dry_run=dry_run,
            runner=started,
        )
    text = (
        f"{result.job}: {result.items:,} work items, {result.skipped:,} of them finished before"
        if dry_run
        else f"{', '.join(result.releases)}: {result.rows:,} rows, {result.changed:,} users changed online, "
        f"{result.offline_rows:,} offline rows, {result.item_vectors:,} item vectors in {result.seconds:.1f} s"
    )
    if result.encode_failures:
        text += f"; {result.encode_failures:,} embeddings could not be computed: mend the release, then --resume"
    invocation.emit(result, text)
    ctx.exit(1 if result.encode_failures else 0)


@click.command()
@click.option("--repair", is_flag=True, help="Mend what differs, through the same guarded write.")
@runner_option
@runner_options_option
@json_option
@click.pass_context
def verify(ctx: click.Context, repair: bool, runner: str, runner_options: tuple[str, ...]) -> None:
    """Recompute what is online and compare.

    Histories and embeddings of every user and live release come from the lake. Exit code 1 if anything differs; with
    --repair, if anything still does.
    """
    from batch.verify import run_verify
    from spoor.flink import batch_runner

    invocation = ctx.ensure_object(Invocation)
    settings = invocation.settings()
    with batch_runner(settings, runner, runner_options) as started:
        result = run_verify(settings, repair=repair, runner=started)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in result.kinds.items() if count)
    text = f"{result.users:,} users, {result.differences:,} differences" + (f": {kinds}" if kinds else "")
    if repair:
        text += f"; {result.repaired:,} repaired, {result.remaining:,} left"
    invocation.emit(result, text)
    ctx.exit(1 if result.remaining else 0)
