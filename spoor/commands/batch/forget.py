"""`spoor forget`: deletes users everywhere; `--expire` removes the markers of earlier deletions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spoor.base.errors import UsageError
from spoor.commands import options
from spoor.commands.invocation import Invocation, confirm, pass_invocation, time_text
from spoor.console import say

if TYPE_CHECKING:
    from spoor.batch.forget.forget import ForgetResult
    from spoor.batch.kafka.retention import Kept


@click.command()
@click.option("--user", "user_ids", multiple=True, metavar="ID", help="A user to forget; may be repeated.")
@click.option("--users-from", type=options.LocalPath(), metavar="FILE", help="A text file with an id a line.")
@click.option("--through", "through_ms", type=options.TIME, help="Forget events up to then. Default: all up to now.")
@click.option("--expire", is_flag=True, help="Only remove markers that are no longer needed.")
@click.option(
    "--grace",
    "grace_ms",
    type=options.DURATION,
    help="With --expire: how long after a deletion copies of its events may still arrive. Default: 7d.",
)
@options.yes
@options.dry_run
@options.json
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
    say_kept(result.kept)
    invocation.emit(result, _forget_text(result))


def _expire(invocation: Invocation, *, grace_ms: int | None, yes: bool, dry_run: bool) -> None:
    from spoor.batch.forget.expire import GRACE_MS, run_expire
    from spoor.broker.reach import require_broker
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


def say_kept(kept: Sequence[Kept]) -> None:
    """What only Kafka can remove, a line a topic."""

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
