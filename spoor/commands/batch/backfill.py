"""`spoor backfill`: all users' histories and embeddings from the lake into Feast's stores."""

from __future__ import annotations

from functools import partial
from typing import Literal

import click

from spoor.base.errors import UsageError
from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation
from spoor.console import say


@click.command()
@options.release
@click.option("--as-of", "as_of_ms", type=options.TIME, help="Use events before this time only. Default: all.")
@click.option("--from", "from_ms", type=options.TIME, help="First snapshot for the offline log.")
@click.option("--to", "to_ms", type=options.TIME, help="Last snapshot.")
@click.option(
    "--every", "every_ms", type=options.DURATION, default="1d", show_default=True, help="Interval between snapshots."
)
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
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@options.runner
@options.dry_run
@options.json
@pass_invocation
def backfill(
    invocation: Invocation,
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
) -> int:
    """Compute and write all users' embeddings.

    Histories come from the lake and go, with their embeddings, to Feast's online store and the offline log. Exit code
    1 if an embedding could not be computed, or a running worker does not write a release.
    """
    if (from_ms is None) != (to_ms is None):
        raise UsageError("--from and --to belong together: one is missing", hint="give both, or neither")
    from spoor.batch.releases import choose_releases
    from spoor.batch.users.backfill import run_backfill
    from spoor.broker.create_topics import ensure_topics
    from spoor.operations.orders import unwritten, way_to_write
    from spoor.services.flink import batch_runner

    snapshots = None if from_ms is None or to_ms is None else (from_ms, to_ms, every_ms)
    if snapshots is not None and into == "both":
        into = "offline"
    settings = invocation.settings()
    chosen = choose_releases(settings, releases)  # refuses before a topic is made
    if publish and snapshots is None and into != "offline" and not dry_run:
        for topic in ensure_topics(settings.kafka, releases=chosen.live, reads_events=True):
            say(topic.describe())
    with batch_runner(settings, runner, runner_options, start=not dry_run) as started:
        result = run_backfill(
            settings,
            releases=chosen,
            as_of_ms=as_of_ms,
            snapshots=snapshots,
            into=into,
            publish=publish,
            resume=resume,
            dry_run=dry_run,
            runner=started,
            unwritten=partial(unwritten, settings) if publish else lambda releases: (),
        )
    text = result.text()
    if result.encode_failures:
        text += f"; {result.encode_failures:,} embeddings could not be computed: repair the release, then --resume"
    if result.unwritten:
        way_out = way_to_write(settings, result.unwritten)
        text += f"; workers do not write {', '.join(result.unwritten)}: {way_out}; then run this again with --resume"
    invocation.emit(result, text)
    return 1 if result.encode_failures or result.unwritten else 0
