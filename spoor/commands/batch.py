"""`spoor archive`, `spoor backfill`, `spoor verify`, `spoor export` and `spoor forget`: the batch jobs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from spoor.base.errors import UsageError
from spoor.commands.invocation import (
    DURATION,
    TIME,
    Invocation,
    LocalPath,
    confirm,
    dry_run_option,
    json_option,
    pass_invocation,
    release_option,
    time_text,
    with_runner,
    yes_option,
)

if TYPE_CHECKING:
    from spoor.batch.forget.forget import ForgetResult
    from spoor.batch.kafka.retention import Kept


@click.command()
@click.option(
    "--resume/--again", default=True, help="Read what the lake lacks, or every range again.", show_default=True
)
@click.option("--accept-loss", is_flag=True, help="Continue despite records lost to retention.")
@with_runner
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
    from spoor.batch.kafka.archive import run_archive
    from spoor.services.flink import batch_runner
    from spoor.services.local import require_broker

    settings = invocation.settings()
    require_broker(settings.kafka)
    with batch_runner(settings, runner, runner_options, start=not dry_run) as chosen:
        result = run_archive(settings, dry_run=dry_run, resume=resume, accept_loss=accept_loss, runner=chosen)
    invocation.emit(result, result.text(settings.lake.folder))


@click.command()
@release_option
@click.option("--as-of", "as_of_ms", type=TIME, help="Use events before this time only. Default: all.")
@click.option("--from", "from_ms", type=TIME, help="First snapshot for the offline log.")
@click.option("--to", "to_ms", type=TIME, help="Last snapshot.")
@click.option("--every", "every_ms", type=DURATION, default="1d", show_default=True, help="Interval between snapshots.")
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
@with_runner
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
    """Compute and write all users' embeddings.

    Histories come from the lake and go, with their embeddings, to Feast's online store and the offline log. Exit code
    1 if an embedding could not be computed, or a running worker does not write a release.
    """
    if (from_ms is None) != (to_ms is None):
        raise UsageError("--from and --to belong together: one is missing", hint="give both, or neither")
    from spoor.batch.releases import chosen_releases, live_names
    from spoor.batch.users.backfill import run_backfill
    from spoor.console import say
    from spoor.operations.kafka_admin import ensure_topics
    from spoor.operations.orders import unwritten, way_to_write
    from spoor.services.flink import batch_runner

    snapshots = None if from_ms is None or to_ms is None else (from_ms, to_ms, every_ms)
    online = into != "offline" and snapshots is None
    invocation = ctx.ensure_object(Invocation)
    settings = invocation.settings()
    chosen_releases(settings, releases)  # refuses before a topic is made
    if publish and online and not dry_run:
        for topic in ensure_topics(settings.kafka, releases=live_names(settings), reads_events=True):
            say(topic.describe())
    with batch_runner(settings, runner, runner_options, start=not dry_run) as started:
        result = run_backfill(
            settings,
            releases=releases or None,
            as_of_ms=as_of_ms,
            snapshots=snapshots,
            online=online,
            offline=into != "online",
            publish=publish and online,
            resume=resume,
            dry_run=dry_run,
            runner=started,
            unwritten=partial(unwritten, settings) if publish else lambda releases: (),
        )
    text = result.text()
    if result.encode_failures:
        text += f"; {result.encode_failures:,} embeddings could not be computed: mend the release, then --resume"
    if result.unwritten:
        way_out = way_to_write(settings, result.unwritten)
        text += f"; workers do not write {', '.join(result.unwritten)}: {way_out}; then run this again with --resume"
    invocation.emit(result, text)
    ctx.exit(1 if result.encode_failures or result.unwritten else 0)


@click.command()
@click.option("--repair", is_flag=True, help="Repair differences through the guarded write.")
@with_runner
@json_option
@click.pass_context
def verify(ctx: click.Context, repair: bool, runner: str, runner_options: tuple[str, ...]) -> None:
    """Recompute what is online and compare.

    Histories and embeddings of every user and live release come from the lake. Exit code 1 if anything differs; with
    --repair, if anything still does.
    """
    from spoor.batch.users.verify import run_verify
    from spoor.services.flink import batch_runner

    invocation = ctx.ensure_object(Invocation)
    settings = invocation.settings()
    with batch_runner(settings, runner, runner_options) as started:
        result = run_verify(settings, repair=repair, runner=started)
    invocation.emit(result, result.text())
    ctx.exit(1 if result.remaining else 0)


@click.command()
@release_option
@click.option("--users", "what", flag_value="users", help="Users alone. Default: users and items.")
@click.option("--items", "what", flag_value="items", help="Items alone.")
@click.option("--to", required=True, type=LocalPath(), metavar="FOLDER", help="Where to write.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in that folder.")
@dry_run_option
@json_option
@pass_invocation
def export(
    invocation: Invocation,
    releases: tuple[str, ...],
    what: Literal["users", "items"] | None,
    to: Path,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Write vectors by raw id to Parquet.

    Everybody's embedding as the store holds it, with revision and model version, and every item's vector: Parquet with
    fixed-size lists of float32, ready for an index of nearest neighbours.
    """
    from spoor.batch.users.export import run_export

    result = run_export(
        invocation.settings(), to, releases=releases, what=what or "both", overwrite=overwrite, dry_run=dry_run
    )
    counts = "; ".join(f"{r.release}: {r.users:,} users, {r.items:,} items" for r in result.releases)
    names = ", ".join(r.release for r in result.releases)
    text = (
        f"{names}: {result.listed:,} users listed, {sum(r.items for r in result.releases):,} item vectors to write"
        if dry_run
        else f"{counts} to {to} in {result.seconds:.1f} s, {result.files:,} files"
    )
    if result.without_embedding:
        text += f"; {result.without_embedding:,} times a listed user has no embedding"
    invocation.emit(result, text)


@click.command()
@click.option("--user", "user_ids", multiple=True, metavar="ID", help="A user to forget; may be repeated.")
@click.option("--users-from", type=LocalPath(), metavar="FILE", help="A text file with an id a line.")
@click.option("--through", "through_ms", type=TIME, help="Forget events up to then. Default: all up to now.")
@click.option("--expire", is_flag=True, help="Only remove markers that are no longer needed.")
@click.option(
    "--grace",
    "grace_ms",
    type=DURATION,
    help="With --expire: how long after a deletion copies of its events may still arrive. Default: 7d.",
)
@yes_option
@dry_run_option
@json_option
@pass_invocation
def forget(
    invocation: Invocation,
    user_ids: tuple[str, ...],
    users_from: Path | None,
    through_ms: int | None,
    expire: bool,
    grace_ms: int | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Delete users' data everywhere, permanently.

    Their rows leave the online store (all views and releases), the offline log and the lake, and the embedding topics
    get records without value. A marker keeps replays and late writers from bringing the past back; events that a
    returning user makes later count. What only Kafka can remove is listed with its latest date. When Kafka has removed
    it, --expire removes the markers too.
    """
    if expire:
        if user_ids or users_from is not None or through_ms is not None:
            raise UsageError(
                "--expire concerns everybody who was forgotten, it takes no users and no time",
                hint="forget users in a call of its own",
            )
        _expire(invocation, grace_ms=grace_ms, yes=yes, dry_run=dry_run)
        return
    if grace_ms is not None:
        raise UsageError("--grace belongs to --expire, which is missing", hint="give both, or users alone")
    from spoor.batch.forget.forget import read_ids, run_forget

    users = [*user_ids, *([] if users_from is None else read_ids(users_from))]
    settings = invocation.settings()
    if not (dry_run or yes):
        confirm(f"Delete the data of {len(set(users)):,} users permanently?")
    result = run_forget(settings, users, through_ms=through_ms, dry_run=dry_run)
    _tell_kept(result.kept)
    invocation.emit(result, _forget_text(result))


@click.command("merge-users")
@click.option("--from", "old", required=True, metavar="ID", help="The anonymous id; it is forgotten.")
@click.option("--to", "new", required=True, metavar="ID", help="The login, which gets its events.")
@yes_option
@dry_run_option
@json_option
@pass_invocation
def merge_users(invocation: Invocation, old: str, new: str, yes: bool, dry_run: bool) -> None:
    """Move one user's events to another id.

    For users who did something before they logged in: the histories merge, online and in the lake, and the old id is
    forgotten through the newest moved event. Run `spoor archive` first: what moves is what the lake holds.
    """
    from spoor.batch.forget.merge_users import run_merge_users

    settings = invocation.settings()
    if not (dry_run or yes):
        confirm("Move the events, and delete the first user permanently?")
    result = run_merge_users(settings, old, new, dry_run=dry_run)
    _tell_kept(result.kept)
    verb = "to move; the old id to be forgotten" if dry_run else "moved; the old id is forgotten"
    text = f"{result.job}: {result.events:,} events {verb} through {time_text(result.forgotten_through_ms)}"
    invocation.emit(result, text)


def _expire(invocation: Invocation, *, grace_ms: int | None, yes: bool, dry_run: bool) -> None:
    from spoor.batch.forget.expire import GRACE_MS, run_expire
    from spoor.console import say
    from spoor.services.local import require_broker
    from spoor.streaming.orders.replay import oldest_letter_ms

    settings = invocation.settings()
    if not (dry_run or yes):
        confirm("Remove the markers of deleted users whose events no source can bring back?")
    require_broker(settings.kafka)
    letter_ms = oldest_letter_ms(settings)
    result = run_expire(settings, grace_ms=grace_ms or GRACE_MS, oldest_letter_ms=letter_ms, dry_run=dry_run)
    for held in result.holds:
        say(f"{held.what}: oldest of {held.since}")
    text = (
        f"{result.job}: of users forgotten before {result.before} {result.removed:,} markers "
        f"{'would go' if dry_run else 'are gone'}, and {result.listed:,} entries of the lake's list; "
        f"{result.waiting:,} markers wait, {result.returned:,} users have returned"
    )
    if result.changed:
        text += f"; {result.changed:,} were written meanwhile"
    if result.unfinished:
        text += f"; {result.unfinished:,} users are not forgotten to the end: run `spoor forget` for them again"
    invocation.emit(result, text)


def _tell_kept(kept: Sequence[Kept]) -> None:
    """What only Kafka can remove, a line a topic."""
    from spoor.console import say

    if kept:
        say("until Kafka removes them, records stay in these topics:")
    for each in kept:
        say(f"{each.topic}: {'until ' + each.until if each.until else 'no date'} ({each.why})")


def _forget_text(result: ForgetResult) -> str:
    tense = "would leave" if result.dry_run else "left"
    return (
        f"{result.job}: {result.users:,} users, {result.online:,} of them online, "
        f"{'to be ' if result.dry_run else ''}forgotten through {time_text(result.forgotten_through_ms)}; "
        f"{result.lake_rows:,} events {tense} the lake, {result.offline_rows:,} rows the offline log; "
        f"{len(result.topics)} embedding topics"
    )
